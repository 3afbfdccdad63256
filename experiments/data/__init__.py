"""The published files of images and text, as data sets; `download` fetches them."""
