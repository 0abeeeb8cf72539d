/* The guest's end of the vsock tests: Linux's socket calls, which busybox has no tool for.
 *
 *   vsock_tool connect PORT     to the host, standard input and output being the connection
 *   vsock_tool listen PORT      the same with the first who connects
 *   vsock_tool messages PORT    seqpacket to the host: sends messages of the sizes that standard
 *                               input names, and prints the sizes of those that come back, and
 *                               whether their bytes are as they were sent
 *
 * Exits with 0, or says what failed on standard error and exits with 1. A connection that is
 * refused is 2, one that is reset is 3.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

static int fail(const char *what)
{
    int refused = errno == ECONNREFUSED || (errno == ECONNRESET && !strcmp(what, "connect"));

    perror(what);
    return refused ? 2 : errno == ECONNRESET ? 3 : 1;
}

/* How long a connection may take. Linux's own two seconds are short for a guest that gets little
 * of a processor. */
static const struct timeval connect_timeout = {.tv_sec = 60};

static int open_socket(int type, unsigned cid, const char *port, struct sockaddr_vm *address)
{
    int sock;

    memset(address, 0, sizeof *address);
    address->svm_family = AF_VSOCK;
    address->svm_cid = cid;
    address->svm_port = (unsigned)strtoul(port, NULL, 10);
    sock = socket(AF_VSOCK, type, 0);
    if (setsockopt(sock, AF_VSOCK, SO_VM_SOCKETS_CONNECT_TIMEOUT, &connect_timeout,
                   sizeof connect_timeout))
        return -1;
    return sock;
}

static int write_all(int fd, const char *data, size_t length)
{
    while (length) {
        ssize_t count = write(fd, data, length);

        if (count < 0)
            return -1;
        data += count;
        length -= (size_t)count;
    }
    return 0;
}

/* Standard input to the socket, then its end; the socket to standard output, until its end. */
static int copy(int sock)
{
    static char data[1 << 16];
    struct pollfd waits[2] = {{.fd = sock, .events = POLLIN}, {.fd = 0, .events = POLLIN}};

    for (;;) {
        if (poll(waits, 2, -1) < 0)
            return fail("poll");
        if (waits[0].revents) {
            ssize_t count = read(sock, data, sizeof data);

            if (count < 0)
                return fail("read");
            if (!count)
                return 0;
            if (write_all(1, data, (size_t)count))
                return fail("output");
        }
        if (waits[1].fd >= 0 && waits[1].revents) {
            ssize_t count = read(0, data, sizeof data);

            if (count < 0)
                return fail("input");
            if (count && write_all(sock, data, (size_t)count))
                return fail("write");
            if (!count) {
                waits[1].fd = -1;
                if (shutdown(sock, SHUT_WR))
                    return fail("shutdown");
            }
        }
    }
}

static int messages(int sock)
{
    static char sent[1 << 18], came[1 << 18];
    size_t size;

    while (scanf("%zu", &size) == 1) {
        ssize_t count;

        for (size_t at = 0; at < size; at++)
            sent[at] = (char)(at * 7 + size);
        if (send(sock, sent, size, MSG_EOR) != (ssize_t)size)
            return fail("send");
        count = recv(sock, came, sizeof came, 0);
        if (count < 0)
            return fail("recv");
        printf("%zd %s\n", count, memcmp(sent, came, size) ? "other" : "same");
        fflush(stdout);
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct sockaddr_vm address;
    int sock;

    if (argc != 3)
        return 1;
    if (!strcmp(argv[1], "listen")) {
        int listener = open_socket(SOCK_STREAM, VMADDR_CID_ANY, argv[2], &address);

        if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1))
            return fail("listen");
        fprintf(stderr, "listening\n");
        sock = accept(listener, NULL, NULL);
        return sock < 0 ? fail("accept") : copy(sock);
    }
    sock = open_socket(strcmp(argv[1], "messages") ? SOCK_STREAM : SOCK_SEQPACKET,
                       VMADDR_CID_HOST, argv[2], &address);
    if (connect(sock, (struct sockaddr *)&address, sizeof address))
        return fail("connect");
    return strcmp(argv[1], "messages") ? copy(sock) : messages(sock);
}
