"""Who writes the texts and draws the pictures of a dataset; one module each, with `Settings` that open it."""

from stages.okedit.providers import diffusers_image, folder_image, openai_text, transformers_text

TEXT = {"transformers": transformers_text.Settings, "openai": openai_text.Settings}
IMAGE = {"diffusers": diffusers_image.Settings, "folder": folder_image.Settings}
