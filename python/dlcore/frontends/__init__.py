"""`dlcore serve --frontends N`: N HTTP processes in front of one engine process.

One Python process formats some tens of thousands of streamed tokens a second; a small model on a
fast GPU makes more. Each front end tokenizes, detokenizes and speaks HTTP; the engine process
only moves rows between the core and the front ends' sockets.
"""
