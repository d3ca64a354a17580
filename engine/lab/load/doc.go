// Package load is what a guest of the lab works with outside of itself: the clients of its servers (web, tcp, redis,
// ssh), the other end of its iperf3, and its disks with the servers that they are on (iSCSI, NFS). All of it is seen
// from outside: what the guest was told, and whether that held. What runs inside of the guest is the agent's.
//
// It knows nothing of migrations but their records, and it makes no guest and no network. Only lab and what stands
// above it may import it.
package load
