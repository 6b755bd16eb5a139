//! Every counter of a host, by name. A name starts with what it is about; each dropped frame or datagram counts in
//! exactly one `drop_*`.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        #[derive(Clone, Debug, Default)]
        pub(super) struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counters! {
    rx_arp,
    rx_ndp,
    rx_icmp_echo,
    /// ICMP errors about a flow of ours.
    rx_icmp_error,
    rx_fragment,
    /// Datagrams put together from fragments.
    rx_reassembled,
    rx_udp,
    tx_arp,
    tx_ndp,
    tx_icmp_echo,
    tx_icmp_error,
    tx_fragment,
    tx_udp,
    /// Another station claims one of our addresses.
    neighbour_conflict,
    /// Solicitations nobody answered.
    neighbour_failed,
    neighbour_evicted,
    /// "Too big" from a router: a flow's path MTU went down.
    flow_path_mtu_lowered,
    drop_truncated,
    drop_bad_version,
    drop_malformed,
    drop_ethertype,
    drop_not_for_us,
    drop_martian,
    drop_source_route,
    drop_ip_checksum,
    drop_udp_checksum,
    drop_icmp_checksum,
    drop_no_listener,
    drop_protocol,
    /// ICMP messages that ask nothing of a host like us, or errors that quote none of our flows.
    drop_icmp_ignored,
    /// ARP and NDP that are not for us, or that nobody asked for.
    drop_neighbour_ignored,
    /// ICMP errors not sent because of the rate limit (RFC 1812 §4.3.2.8, RFC 4443 §2.4(f)).
    drop_icmp_rate,
    drop_fragment_overlap,
    drop_fragment_duplicate,
    drop_fragment_timeout,
    /// In more separate pieces than are remembered.
    drop_fragment_pieces,
    drop_fragment_too_long,
    /// Evicted, the oldest first, to make room for a newer datagram.
    drop_reassembly_full,
    drop_reassembly_no_buffer,
    drop_neighbour_pending_full,
    drop_neighbour_table_full,
    /// Datagrams that waited for a neighbour who never answered.
    drop_unreachable,
    drop_too_long,
    /// Datagrams the port did not take.
    drop_port,
    /// Sent on a flow that is closed.
    drop_no_flow,
}
