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
    rx_tcp,
    /// Segments that bring nothing new: retransmissions, probes.
    rx_tcp_duplicate,
    /// Resets that ended a connection.
    rx_tcp_reset,
    tx_arp,
    tx_ndp,
    tx_icmp_echo,
    tx_icmp_error,
    tx_fragment,
    tx_udp,
    tx_tcp,
    tx_tcp_retransmission,
    tx_tcp_reset,
    /// Acknowledgements that ask whether a reset, SYN or acknowledgement was meant (RFC 5961).
    tx_tcp_challenge,
    tcp_accepted,
    tcp_connected,
    /// Connections whose peer did not answer in time.
    tcp_timeout,
    /// Half-open connections that made room for newer ones.
    tcp_half_open_evicted,
    /// Connections closed here whose peer did not take everything, which made room for newer ones.
    tcp_orphans_evicted,
    tcp_time_wait_evicted,
    /// Ports in TIME-WAIT that were used again.
    tcp_time_wait_reused,
    /// Data for connections that were closed here: they are reset.
    tcp_closed_with_data,
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
    drop_tcp_checksum,
    drop_icmp_checksum,
    drop_no_listener,
    drop_tcp_no_listener,
    /// Segments of connections that do not exist.
    drop_tcp_no_connection,
    /// SYNs that the accept hook refused.
    drop_tcp_hook,
    /// SYNs from a source with too many half-open connections.
    drop_tcp_source,
    /// SYNs while there was no place or buffer for a connection.
    drop_tcp_full,
    /// Segments outside the window.
    drop_tcp_window,
    /// Acknowledgements of what was never sent.
    drop_tcp_ack,
    /// Resets that are not at the next sequence number.
    drop_tcp_reset,
    /// SYNs on connections that exist.
    drop_tcp_syn,
    /// Segments without ACK on connections that exist.
    drop_tcp_flags,
    /// Segments for connections in TIME-WAIT.
    drop_tcp_time_wait,
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
