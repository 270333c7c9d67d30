"""What editing costs: time, memory and what a routed model pays per query."""
