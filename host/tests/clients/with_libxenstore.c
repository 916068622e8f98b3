/* A program on libxenstore against `ferrostored --domains 2`: what xenstore-* do not use. scripts/test-clients runs it.
 *
 * Arguments: none; XENSTORED_PATH names the privileged domain's socket, GUEST_PATH that of domain 1.
 */
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xenstore.h>

#define EXPECT(what) \
    do { \
        if (!(what)) { \
            fprintf(stderr, "line %d: not so: %s (errno %d: %s)\n", __LINE__, #what, errno, strerror(errno)); \
            exit(1); \
        } \
    } while (0)

/* More than one message holds: libxenstore then asks for the list in parts. */
enum { CHILDREN = 1000, PATIENCE_MS = 30000 };

static void put(struct xs_handle *xs, xs_transaction_t transaction, const char *path, const char *value)
{
    EXPECT(xs_write(xs, transaction, path, value, strlen(value)));
}

static bool holds(struct xs_handle *xs, xs_transaction_t transaction, const char *path, const char *value)
{
    unsigned int length;
    char *found = xs_read(xs, transaction, path, &length);
    bool same = found && length == strlen(value) && !memcmp(found, value, length);
    free(found);
    return same;
}

static void expect_event(struct xs_handle *xs, const char *path, const char *token)
{
    struct pollfd ready = { .fd = xs_fileno(xs), .events = POLLIN };
    EXPECT(poll(&ready, 1, PATIENCE_MS) == 1);
    char **event = xs_check_watch(xs);
    EXPECT(event);
    EXPECT(!strcmp(event[XS_WATCH_PATH], path));
    EXPECT(!strcmp(event[XS_WATCH_TOKEN], token));
    free(event);
}

static void transactions(struct xs_handle *xs, struct xs_handle *other)
{
    put(xs, XBT_NULL, "/t/a", "old");
    xs_transaction_t transaction = xs_transaction_start(xs);
    EXPECT(transaction);
    EXPECT(holds(xs, transaction, "/t/a", "old"));
    put(xs, transaction, "/t/b", "new");
    EXPECT(!xs_read(other, XBT_NULL, "/t/b", NULL) && errno == ENOENT);
    EXPECT(xs_transaction_end(xs, transaction, false));
    EXPECT(holds(other, XBT_NULL, "/t/b", "new"));

    transaction = xs_transaction_start(xs);
    EXPECT(holds(xs, transaction, "/t/a", "old"));
    put(other, XBT_NULL, "/t/a", "between");
    put(xs, transaction, "/t/c", "new");
    EXPECT(!xs_transaction_end(xs, transaction, false) && errno == EAGAIN);
    EXPECT(!xs_read(xs, XBT_NULL, "/t/c", NULL) && errno == ENOENT);

    transaction = xs_transaction_start(xs);
    EXPECT(xs_rm(xs, transaction, "/t"));
    EXPECT(xs_transaction_end(xs, transaction, true));
    EXPECT(holds(xs, XBT_NULL, "/t/a", "between"));
}

static void watches(struct xs_handle *xs, struct xs_handle *other)
{
    EXPECT(xs_watch(xs, "/t", "token"));
    expect_event(xs, "/t", "token");
    put(other, XBT_NULL, "/t/a", "x");
    expect_event(xs, "/t/a", "token");
    EXPECT(!xs_watch(xs, "/t", "token") && errno == EEXIST);
    EXPECT(xs_unwatch(xs, "/t", "token"));
    put(other, XBT_NULL, "/t/a", "y");
    EXPECT(!xs_check_watch(xs) && errno == EAGAIN);
}

static void directories(struct xs_handle *xs)
{
    char path[64];
    for (int child = 0; child < CHILDREN; child++) {
        snprintf(path, sizeof path, "/t/big/child-%d", child);
        EXPECT(xs_mkdir(xs, XBT_NULL, path));
    }
    unsigned int count;
    char **names = xs_directory(xs, XBT_NULL, "/t/big", &count);
    EXPECT(names && count == CHILDREN);
    EXPECT(!strcmp(names[0], "child-0") && !strcmp(names[CHILDREN - 1], "child-999"));
    free(names);
}

static void permissions(struct xs_handle *xs)
{
    struct xs_permissions wanted[] = { { 0, XS_PERM_NONE }, { 1, XS_PERM_READ | XS_PERM_WRITE } };
    EXPECT(xs_set_permissions(xs, XBT_NULL, "/t/a", wanted, 2));
    unsigned int count;
    struct xs_permissions *found = xs_get_permissions(xs, XBT_NULL, "/t/a", &count);
    EXPECT(found && count == 2 && found[1].id == 1 && found[1].perms == wanted[1].perms);
    free(found);
}

static void domains(struct xs_handle *xs)
{
    char *home = xs_get_domain_path(xs, 7);
    EXPECT(home && !strcmp(home, "/local/domain/7"));
    free(home);
    EXPECT(xs_is_domain_introduced(xs, 1) && !xs_is_domain_introduced(xs, 77));
    EXPECT(xs_release_domain(xs, 2) && !xs_is_domain_introduced(xs, 2));
    EXPECT(xs_introduce_domain(xs, 2, 1, 1) && xs_is_domain_introduced(xs, 2));
    EXPECT(xs_set_target(xs, 2, 1) && xs_resume_domain(xs, 2));
    char check[] = "check";
    char *answer = xs_control_command(xs, check, NULL, 0);
    EXPECT(answer && !strcmp(answer, "OK"));
    free(answer);
}

/* A guest of its own, through its ring. */
static void guest(struct xs_handle *dom0, const char *path)
{
    EXPECT(!setenv("XENSTORED_PATH", path, 1));
    struct xs_handle *xs = xs_open(0);
    EXPECT(xs);
    put(dom0, XBT_NULL, "/private", "secret");
    EXPECT(!xs_read(xs, XBT_NULL, "/private", NULL) && errno == EACCES);
    EXPECT(xs_watch(xs, "data", "token"));
    expect_event(xs, "data", "token");
    put(dom0, XBT_NULL, "/local/domain/1/data", "x");
    expect_event(xs, "data", "token");
    EXPECT(holds(xs, XBT_NULL, "data", "x"));
    EXPECT(!xs_introduce_domain(xs, 2, 1, 1) && errno == EACCES);
    xs_close(xs);
}

int main(void)
{
    struct xs_handle *xs = xs_open(0), *other = xs_open(0);
    const char *guest_path = getenv("GUEST_PATH");
    EXPECT(xs && other && guest_path);
    transactions(xs, other);
    watches(xs, other);
    directories(xs);
    permissions(xs);
    domains(xs);
    guest(xs, guest_path);
    EXPECT(xs_rm(xs, XBT_NULL, "/t"));
    xs_close(other);
    xs_close(xs);
    puts("ok   libxenstore: transactions, watches, directories, permissions, domains, a guest");
    return 0;
}
