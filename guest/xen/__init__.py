"""What a guest needs to live on Xen: grants, event channels, the store, and the bus that is made of its entries."""
