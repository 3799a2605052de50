/* A proxy that makes a server far away: each byte arrives half a round trip after it was sent.
 *
 *     delay HOST PORT MICROSECONDS
 *
 * It listens at a port of 127.0.0.1, which it prints, and hands on what comes there to PORT at
 * HOST, or to the Unix socket in HOST if that is a folder. It ends with its standard input. Nothing
 * but the kernel copies what it hands on.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CHUNK 65536
#define CHUNKS 64 /* on their way at the same time, at most */
#define LINKS 64

typedef struct {
    int64_t due;
    size_t size, sent;
    char data[CHUNK];
} Chunk;

/* From one socket to another. */
typedef struct {
    int from, to;
    unsigned first, last; /* of a ring of chunks */
    bool ended;           /* nothing more comes */
    Chunk *chunks;
} Way;

static Way ways[2 * LINKS]; /* two in a row are of one connection */
static int nways;
static int64_t delay;

static void
die(const char *what)
{
    fprintf(stderr, "delay: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t
now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static int
reach(const char *host, const char *port)
{
    int fd = -1, one = 1;
    if (*host == '/') {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        size_t room = sizeof(address.sun_path);
        if ((size_t)snprintf(address.sun_path, room, "%s/.s.PGSQL.%s", host, port) >= room)
            return -1;
        fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        return fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0 ? fd : -1;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    if (getaddrinfo(host, port, &hints, &found) != 0)
        return -1;
    for (struct addrinfo *a = found; a != NULL && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, a->ai_socktype | SOCK_CLOEXEC, 0);
        if (fd >= 0 && connect(fd, a->ai_addr, a->ai_addrlen) < 0) {
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(found);
    if (fd >= 0)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    return fd;
}

static void
take_link(int listener, const char *host, const char *port)
{
    int one = 1, client = accept4(listener, NULL, NULL, SOCK_CLOEXEC), server;
    if (client < 0)
        return;
    if (nways == 2 * LINKS || (server = reach(host, port)) < 0) {
        close(client);
        return;
    }
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    for (int i = 0; i < 2; i++) {
        Chunk *chunks = malloc(CHUNKS * sizeof(*chunks));
        if (chunks == NULL)
            die("memory");
        ways[nways++] = (Way){i ? server : client, i ? client : server, 0, 0, false, chunks};
    }
}

static bool
is_full(const Way *w)
{
    return w->last - w->first == CHUNKS;
}

static void
take(Way *w)
{
    Chunk *c = &w->chunks[w->last % CHUNKS];
    ssize_t n = recv(w->from, c->data, CHUNK, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    w->ended = n <= 0;
    c->size = n > 0 ? (size_t)n : 0;
    c->sent = 0;
    c->due = now() + delay;
    w->last++;
}

/* Send what is due: whether the socket takes no more. */
static bool
give(Way *w)
{
    while (w->first != w->last) {
        Chunk *c = &w->chunks[w->first % CHUNKS];
        if (c->due > now())
            return false;
        if (c->size == 0)
            shutdown(w->to, SHUT_WR);
        while (c->sent < c->size) {
            ssize_t n =
                send(w->to, c->data + c->sent, c->size - c->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (n < 0 && errno == EAGAIN)
                return true;
            if (n < 0) /* the other side has gone: this one learns it from its own socket */
                break;
            c->sent += (size_t)n;
        }
        w->first++;
    }
    return false;
}

static void
drop_ended(void)
{
    for (int i = 0; i < nways;) {
        Way *w = &ways[i];
        if (!w[0].ended || !w[1].ended || w[0].first != w[0].last || w[1].first != w[1].last) {
            i += 2;
            continue;
        }
        close(w[0].from);
        close(w[0].to);
        free(w[0].chunks);
        free(w[1].chunks);
        nways -= 2;
        memmove(w, w + 2, (size_t)(nways - i) * sizeof(*w));
    }
}

int
main(int argc, char **argv)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof(address);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (argc != 4) {
        fputs("usage: delay HOST PORT MICROSECONDS\n", stderr);
        return 2;
    }
    delay = atoll(argv[3]) * 1000 / 2;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, size) < 0 ||
        listen(listener, LINKS) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &size) < 0)
        die("listen");
    prctl(PR_SET_TIMERSLACK, 1UL); /* the kernel's own is 50 microseconds */
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        struct pollfd fds[2 + 4 * LINKS] = {{STDIN_FILENO, POLLIN, 0}, {listener, POLLIN, 0}};
        int64_t next = INT64_MAX;
        for (int i = 0; i < nways; i++) {
            Way *w = &ways[i];
            bool blocked = give(w);
            fds[2 + 2 * i] = (struct pollfd){w->ended || is_full(w) ? -1 : w->from, POLLIN, 0};
            fds[3 + 2 * i] = (struct pollfd){blocked ? w->to : -1, POLLOUT, 0};
            if (!blocked && w->first != w->last && w->chunks[w->first % CHUNKS].due < next)
                next = w->chunks[w->first % CHUNKS].due;
        }
        int64_t left = next == INT64_MAX ? 0 : next - now();
        struct timespec limit = {0, left > 0 ? left : 0}; /* half a round trip is less than 1 s */
        int seen = nways;
        if (ppoll(fds, 2 + 2 * (nfds_t)nways, next == INT64_MAX ? NULL : &limit, NULL) < 0 &&
            errno != EINTR)
            die("poll");
        for (int i = 0; i < seen; i++)
            if (fds[2 + 2 * i].revents)
                take(&ways[i]);
        if (fds[0].revents)
            return 0;
        if (fds[1].revents)
            take_link(listener, argv[1], argv[2]);
        drop_ended();
    }
}
