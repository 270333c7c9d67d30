"""Reports: notebooks that show tables already computed, the pages they become, and the way in."""
