/* The clients of the echo benches: they cost the same whoever serves, and run beside the server.

   load ADDRESS plain|tls SIZE ACTIVE IDLE

   ADDRESS is HOST:PORT (numbers) or a path. Connects IDLE + ACTIVE times, says "ready", then for
   every "N\n" on stdin sends N messages of SIZE bytes over the active connections, each of which
   waits for its answer of the same length before it sends the next, and says "done". Ends with
   stdin.

   One thread, level-triggered epoll. The answer's bytes must be those of the message. */

#define _GNU_SOURCE

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define FILL 'x'
#define BUFFER (256 * 1024)

typedef struct {
    int fd;
    SSL *ssl; /* NULL: plain */
    size_t sent, got;
    bool busy, wants_write;
} Conn;

static size_t size;
static char *message;
static char buffer[BUFFER];
static int poller;
static SSL_CTX *context; /* NULL: plain */
static union {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_un un;
} address;
static socklen_t address_len;

static _Noreturn void
fail(const char *what)
{
    if (errno != 0) {
        fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    }
    else {
        fprintf(stderr, "load: %s\n", what);
    }
    ERR_print_errors_fp(stderr);
    exit(1);
}

static void
parse_address(char *text)
{
    char *port = strchr(text, ':');
    if (port == NULL) {
        address.un.sun_family = AF_UNIX;
        if (strlen(text) >= sizeof(address.un.sun_path)) {
            fail("the path is too long");
        }
        memcpy(address.un.sun_path, text, strlen(text) + 1);
        address_len = sizeof(address.un);
        return;
    }
    *port++ = '\0';
    address.in.sin_family = AF_INET;
    address.in.sin_port = htons((uint16_t)atoi(port));
    if (inet_pton(AF_INET, text, &address.in.sin_addr) != 1) {
        fail("no such address");
    }
    address_len = sizeof(address.in);
}

/* Bytes moved; 0 when it would block. Ends the program on errors and at the end of the stream. */
static size_t
tls_result(Conn *conn, int ok, size_t n)
{
    if (ok) {
        return n;
    }
    switch (SSL_get_error(conn->ssl, ok)) {
    case SSL_ERROR_WANT_READ:
    case SSL_ERROR_WANT_WRITE:
        return 0;
    default:
        fail("the TLS connection failed");
    }
}

static size_t
plain_result(ssize_t n)
{
    if (n > 0) {
        return (size_t)n;
    }
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) {
        errno = 0;
        return 0;
    }
    fail(n == 0 ? "the server closed the connection" : "the connection failed");
}

static size_t
conn_write(Conn *conn, const char *data, size_t len)
{
    if (conn->ssl != NULL) {
        size_t n = 0;
        int ok = SSL_write_ex(conn->ssl, data, len, &n);
        return tls_result(conn, ok, n);
    }
    return plain_result(send(conn->fd, data, len, MSG_NOSIGNAL));
}

static size_t
conn_read(Conn *conn, char *data, size_t len)
{
    if (conn->ssl != NULL) {
        size_t n = 0;
        int ok = SSL_read_ex(conn->ssl, data, len, &n);
        return tls_result(conn, ok, n);
    }
    return plain_result(recv(conn->fd, data, len, 0));
}

static void
conn_watch(Conn *conn, int op, bool for_write)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = conn};
    if (for_write) {
        event.events |= EPOLLOUT;
    }
    conn->wants_write = for_write;
    if (epoll_ctl(poller, op, conn->fd, &event) != 0) {
        fail("epoll_ctl");
    }
}

static void
conn_open(Conn *conn)
{
    int on = 1;
    conn->fd = socket(address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (conn->fd < 0) {
        fail("socket");
    }
    if (connect(conn->fd, &address.any, address_len) != 0) {
        fail("connect");
    }
    if (address.any.sa_family == AF_INET) {
        setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    }
    if (context != NULL) {
        conn->ssl = SSL_new(context);
        if (conn->ssl == NULL || !SSL_set_fd(conn->ssl, conn->fd)) {
            fail("SSL_new");
        }
        if (SSL_connect(conn->ssl) != 1) { /* the socket still blocks */
            fail("the handshake failed");
        }
    }
    if (fcntl(conn->fd, F_SETFL, O_NONBLOCK) != 0) {
        fail("fcntl");
    }
    conn_watch(conn, EPOLL_CTL_ADD, false);
}

static void
conn_send(Conn *conn)
{
    while (conn->sent < size) {
        size_t n = conn_write(conn, message + conn->sent, size - conn->sent);
        if (n == 0) {
            break;
        }
        conn->sent += n;
    }
    bool unsent = conn->sent < size;
    if (unsent != conn->wants_write) {
        conn_watch(conn, EPOLL_CTL_MOD, unsent);
    }
}

static void
conn_start(Conn *conn)
{
    conn->busy = true;
    conn->sent = conn->got = 0;
    conn_send(conn);
}

/* True when the whole answer is here. */
static bool
conn_receive(Conn *conn)
{
    while (conn->got < size) {
        size_t n = conn_read(conn, buffer, BUFFER);
        if (n == 0) {
            return false;
        }
        conn->got += n;
        if (conn->got > size || buffer[0] != FILL || buffer[n - 1] != FILL) {
            fail("the answer is not the message");
        }
    }
    conn->busy = false;
    return true;
}

static void
exchange(Conn *conns, size_t active, long total)
{
    struct epoll_event events[64];
    long started = 0, finished = 0;
    for (size_t i = 0; i < active && started < total; i++, started++) {
        conn_start(&conns[i]);
    }
    while (finished < total) {
        int n = epoll_wait(poller, events, 64, -1);
        if (n < 0 && errno != EINTR) {
            fail("epoll_wait");
        }
        for (int i = 0; i < n; i++) {
            Conn *conn = events[i].data.ptr;
            if (!conn->busy) { /* session tickets come whenever the server likes */
                conn_read(conn, buffer, BUFFER);
                continue;
            }
            if (events[i].events & EPOLLOUT) {
                conn_send(conn);
            }
            if (conn_receive(conn)) {
                finished++;
                if (started < total) {
                    started++;
                    conn_start(conn);
                }
            }
        }
    }
}

static void
raise_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static void
make_context(void)
{
    context = SSL_CTX_new(TLS_client_method());
    if (context == NULL) {
        fail("SSL_CTX_new");
    }
    SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
}

static void
say(const char *what)
{
    puts(what);
    fflush(stdout);
}

int
main(int argc, char **argv)
{
    if (argc != 6) {
        fail("usage: load ADDRESS plain|tls SIZE ACTIVE IDLE");
    }
    signal(SIGPIPE, SIG_IGN);
    raise_limit();
    parse_address(argv[1]);
    if (strcmp(argv[2], "tls") == 0) {
        make_context();
    }
    size = (size_t)atol(argv[3]);
    size_t active = (size_t)atol(argv[4]), all = active + (size_t)atol(argv[5]);
    message = malloc(size);
    Conn *conns = calloc(all, sizeof(Conn));
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (message == NULL || conns == NULL || poller < 0) {
        fail("cannot start");
    }
    memset(message, FILL, size);
    for (size_t i = 0; i < all; i++) {
        conn_open(&conns[i]);
        exchange(&conns[i], 1, 1); /* accepted, and no longer a connection that was never used */
    }
    say("ready");
    char line[32];
    while (fgets(line, sizeof(line), stdin) != NULL) {
        exchange(conns, active, atol(line));
        say("done");
    }
    return 0;
}
