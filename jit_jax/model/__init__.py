"""The network, the 512 slots it runs over, and where everything lies on a mesh."""
