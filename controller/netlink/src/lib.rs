//! Netlink attributes, batches and sockets for nfnetlink (nftables, log)
