"""What a run leaves for people: files, a log, images, charts."""
