"""The console: a web page, and the bridge that carries its calls to this server's gRPC.

The bridge has no rules of its own. Every call of the page, or of any program that speaks HTTP or WebSocket, becomes a
gRPC call with the caller's own key, address, deadline and request id, over a Unix socket that only this process can
reach. So keys, quotas, metrics, draining and errors are those of gRPC.
"""
