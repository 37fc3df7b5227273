"""Models from and to Hugging Face's folders. Importing this loads neither torch nor safetensors."""
