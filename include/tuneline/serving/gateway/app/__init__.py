"""The application: socket, routes, one request from first byte to last."""
