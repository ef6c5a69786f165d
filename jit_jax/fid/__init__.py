"""Fréchet distance and its relatives: `inception` turns images into features, `distance` features into numbers,
`fetch` downloads the Inception weights. Nothing here knows the rest of the package."""
