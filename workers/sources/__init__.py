"""Reading files of images and tables with numpy, Pillow and pandas; no torch, so that the API can look at data too."""
