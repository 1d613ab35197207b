"""What `dlcore bench` measures: offline.py in this process, http_load.py against a URL."""
