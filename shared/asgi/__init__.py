"""What both apps need to serve HTTP: listeners, deadlines, bodies, the error envelope, leaving clients."""
