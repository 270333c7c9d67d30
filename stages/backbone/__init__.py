"""Vision-language backbones: how each is assembled, trained once, opened and queried."""
