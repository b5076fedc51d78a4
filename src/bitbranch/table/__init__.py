"""Tables of methods: the same network, data and epochs for every row, several seeds, one page."""
