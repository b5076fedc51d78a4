"""What reports are made of: the bare page, plots as SVG, and where figures come from."""
