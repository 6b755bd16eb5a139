/* Forwards frames between two interfaces by AF_XDP, copy mode, one queue each: raw rings and no library. Each socket has
 * memory of its own, as sockets have that know nothing of each other, and a frame is copied from one to the other; with
 * `share` both have the same, and nothing is copied here.
 *
 *     cc -O3 -o xdp_forward xdp_forward.c && xdp_forward IF IF [share]
 */
#include <errno.h>
#include <linux/bpf.h>
#include <linux/if_link.h>
#include <linux/if_xdp.h>
#include <net/if.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SOL_XDP
#define SOL_XDP 283
#endif

enum { SLOTS = 2048, FRAME = 2048, BATCH = 32, SPINS = 1000 };

struct ring {
    uint32_t *producer, *consumer;
    void *entries;
    uint32_t next; /* our index */
};

struct port {
    int fd;
    struct ring rx, tx, fill, completion;
    unsigned char *memory;
    uint64_t free[SLOTS]; /* to send from, when memory is not shared */
    uint32_t count;
};

/* Half of it to receive into, half to send from, or of two ports; in huge pages. */
static void *memory(void) {
    void *made = aligned_alloc(2 << 20, 2ull * SLOTS * FRAME);
    if (!made || madvise(made, 2ull * SLOTS * FRAME, MADV_HUGEPAGE)) {
        perror("memory");
        exit(1);
    }
    return made;
}

static void need(int ok, const char *what) {
    if (!ok) {
        perror(what);
        exit(1);
    }
}

static struct ring map(int fd, uint64_t page, const struct xdp_ring_offset *at, size_t entry) {
    void *base = mmap(NULL, at->desc + SLOTS * entry, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, (off_t)page);
    need(base != MAP_FAILED, "mmap of a ring");
    return (struct ring){base + at->producer, base + at->consumer, base + at->desc, 0};
}

static uint32_t available(const struct ring *ring) {
    return __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE) - ring->next;
}

static struct port open_port(const char *name, void *memory, uint64_t first, int other) {
    struct port port = {.fd = socket(AF_XDP, SOCK_RAW, 0), .memory = memory};
    int slots = SLOTS, map_fd, program, zero = 0, bytes = SLOTS * 4096;
    need(port.fd >= 0, "socket");
    if (other < 0) {
        struct xdp_umem_reg region = {.addr = (uintptr_t)memory, .len = 2ull * SLOTS * FRAME, .chunk_size = FRAME};
        need(!setsockopt(port.fd, SOL_XDP, XDP_UMEM_REG, &region, sizeof region), "memory");
    }
    need(!setsockopt(port.fd, SOL_XDP, XDP_UMEM_FILL_RING, &slots, sizeof slots), "fill ring");
    need(!setsockopt(port.fd, SOL_XDP, XDP_UMEM_COMPLETION_RING, &slots, sizeof slots), "completion ring");
    need(!setsockopt(port.fd, SOL_XDP, XDP_RX_RING, &slots, sizeof slots), "receive ring");
    need(!setsockopt(port.fd, SOL_XDP, XDP_TX_RING, &slots, sizeof slots), "send ring");
    setsockopt(port.fd, SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof bytes);
    struct xdp_mmap_offsets at;
    socklen_t size = sizeof at;
    need(!getsockopt(port.fd, SOL_XDP, XDP_MMAP_OFFSETS, &at, &size), "offsets");
    port.rx = map(port.fd, XDP_PGOFF_RX_RING, &at.rx, sizeof(struct xdp_desc));
    port.tx = map(port.fd, XDP_PGOFF_TX_RING, &at.tx, sizeof(struct xdp_desc));
    port.fill = map(port.fd, XDP_UMEM_PGOFF_FILL_RING, &at.fr, sizeof(uint64_t));
    port.completion = map(port.fd, XDP_UMEM_PGOFF_COMPLETION_RING, &at.cr, sizeof(uint64_t));
    for (int i = 0; i < SLOTS; i++)
        ((uint64_t *)port.fill.entries)[port.fill.next++] = first + (uint64_t)i * FRAME;
    __atomic_store_n(port.fill.producer, port.fill.next, __ATOMIC_RELEASE);
    for (; port.count < SLOTS; port.count++)
        port.free[port.count] = (uint64_t)(SLOTS + port.count) * FRAME;
    struct sockaddr_xdp address = {.sxdp_family = AF_XDP, .sxdp_ifindex = if_nametoindex(name)};
    if (other < 0) {
        address.sxdp_flags = XDP_COPY | XDP_USE_NEED_WAKEUP;
    } else {
        address.sxdp_flags = XDP_SHARED_UMEM;
        address.sxdp_shared_umem_fd = (uint32_t)other;
    }
    need(!bind(port.fd, (struct sockaddr *)&address, sizeof address), "bind");

    union bpf_attr attr = {.map_type = BPF_MAP_TYPE_XSKMAP, .key_size = 4, .value_size = 4, .max_entries = 1};
    need((map_fd = (int)syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr)) >= 0, "map");
    attr = (union bpf_attr){.map_fd = (uint32_t)map_fd, .key = (uintptr_t)&zero, .value = (uintptr_t)&port.fd};
    need(!syscall(SYS_bpf, BPF_MAP_UPDATE_ELEM, &attr, sizeof attr), "map entry");
    struct bpf_insn code[] = {
        {.code = BPF_LDX | BPF_MEM | BPF_W, .dst_reg = 2, .src_reg = 1, .off = 16}, /* the queue's number */
        {.code = BPF_LD | BPF_DW | BPF_IMM, .dst_reg = 1, .src_reg = BPF_PSEUDO_MAP_FD, .imm = map_fd},
        {0},
        {.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 3, .imm = XDP_PASS},
        {.code = BPF_JMP | BPF_CALL, .imm = BPF_FUNC_redirect_map},
        {.code = BPF_JMP | BPF_EXIT},
    };
    attr = (union bpf_attr){.prog_type = BPF_PROG_TYPE_XDP, .insn_cnt = sizeof code / sizeof *code};
    attr.insns = (uintptr_t)code;
    attr.license = (uintptr_t) "Apache-2.0";
    need((program = (int)syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr)) >= 0, "program");
    attr = (union bpf_attr){.link_create = {.prog_fd = (uint32_t)program, .target_ifindex = address.sxdp_ifindex}};
    attr.link_create.attach_type = BPF_XDP;
    attr.link_create.flags = XDP_FLAGS_DRV_MODE;
    need(syscall(SYS_bpf, BPF_LINK_CREATE, &attr, sizeof attr) >= 0, "link");
    return port;
}

static struct xdp_desc *descriptor(struct ring *ring, uint32_t index) {
    return (struct xdp_desc *)ring->entries + (index & (SLOTS - 1));
}

static uint64_t *place(struct ring *ring, uint32_t index) { return (uint64_t *)ring->entries + (index & (SLOTS - 1)); }

/* What has been sent is free again: where it is received into, or to send from. */
static void recycle(struct port *from, struct port *to, int share) {
    uint32_t count = available(&to->completion);
    for (uint32_t i = 0; i < count; i++) {
        uint64_t frame = *place(&to->completion, to->completion.next + i) & ~(uint64_t)(FRAME - 1);
        if (share)
            *place(&from->fill, from->fill.next++) = frame;
        else
            to->free[to->count++] = frame;
    }
    if (count)
        __atomic_store_n(to->completion.consumer, to->completion.next += count, __ATOMIC_RELEASE);
}

static uint32_t forward(struct port *from, struct port *to, int share) {
    recycle(from, to, share);
    uint32_t count = available(&from->rx);
    if (count > BATCH)
        count = BATCH;
    if (!share && count > to->count)
        count = to->count;
    for (uint32_t i = 0; i < count; i++) {
        struct xdp_desc frame = *descriptor(&from->rx, from->rx.next + i);
        uint64_t sent = frame.addr;
        if (!share) {
            sent = to->free[--to->count];
            memcpy(to->memory + sent, from->memory + frame.addr, frame.len);
            *place(&from->fill, from->fill.next++) = frame.addr & ~(uint64_t)(FRAME - 1);
        }
        *descriptor(&to->tx, to->tx.next++) = (struct xdp_desc){sent, frame.len, 0};
    }
    __atomic_store_n(from->fill.producer, from->fill.next, __ATOMIC_RELEASE);
    if (count) {
        __atomic_store_n(from->rx.consumer, from->rx.next += count, __ATOMIC_RELEASE);
        __atomic_store_n(to->tx.producer, to->tx.next, __ATOMIC_RELEASE);
    }
    if (count || __atomic_load_n(to->tx.consumer, __ATOMIC_ACQUIRE) != to->tx.next)
        sendto(to->fd, NULL, 0, MSG_DONTWAIT, NULL, 0);
    return count;
}

int main(int argc, char **argv) {
    int share = argc == 4 && !strcmp(argv[3], "share");
    if (argc != 3 && !share) {
        fputs("usage: xdp_forward IF IF [share]\n", stderr);
        return 2;
    }
    static struct port a, b;
    a = open_port(argv[1], memory(), 0, -1);
    b = share ? open_port(argv[2], a.memory, (uint64_t)SLOTS * FRAME, a.fd) : open_port(argv[2], memory(), 0, -1);
    puts("ready");
    fflush(stdout);
    for (uint32_t idle = 0;;) {
        idle = forward(&a, &b, share) + forward(&b, &a, share) ? 0 : idle + 1;
        if (idle > SPINS) {
            struct pollfd ports[] = {{.fd = a.fd, .events = POLLIN}, {.fd = b.fd, .events = POLLIN}};
            poll(ports, 2, -1);
            idle = 0;
        }
    }
}
