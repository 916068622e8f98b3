// A hypervisor that is not there: preloaded, it lets C xenstored run as an ordinary process that serves its unix socket.
//
// These stand before libxenctrl, libxenevtchn and libxengnttab, and before `open` for the two files through which Linux shows dom0's ring.
// The ring is a page of zeros, no event ever comes, every domid that is asked for names a running domain, and no page of it can be mapped, unless
// FAKE_XEN_GRANTS is set: then it is a page of zeros. The names and parameters are those of the libraries' public headers (xenctrl.h, xenevtchn.h, xengnttab.h).
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

// What xenctrl.h has at the head of xc_dominfo_t; the rest stays as the caller made it.
struct domain_info {
    uint32_t domid;
    uint32_t ssidref;
    uint32_t state;
};

static const uint32_t state_running = 1u << 5;
static const int some_port = 1;
static const long ring_bytes = 4096;

// Callers hold handles only to hand them back.
static char handle;
static int event_fd = -1;

void *xc_interface_open(void *logger, void *builder_logger, unsigned flags) {
    (void)logger, (void)builder_logger, (void)flags;
    return &handle;
}

int xc_interface_close(void *xc) {
    (void)xc;
    return 0;
}

int xc_domain_getinfo(void *xc, uint32_t first, unsigned count, struct domain_info *info) {
    (void)xc;
    if (count == 0)
        return 0;
    info->domid = first;
    info->ssidref = 0;
    info->state = state_running;
    return 1;
}

void *xenevtchn_open(void *logger, unsigned flags) {
    (void)logger, (void)flags;
    event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return event_fd < 0 ? NULL : &handle;
}

void *xenevtchn_fdopen(void *logger, int fd, unsigned flags) {
    (void)fd;
    return xenevtchn_open(logger, flags);
}

int xenevtchn_fd(void *events) {
    (void)events;
    return event_fd;
}

int xenevtchn_bind_virq(void *events, unsigned virq) {
    (void)events, (void)virq;
    return some_port;
}

int xenevtchn_bind_interdomain(void *events, uint32_t domid, uint32_t remote_port) {
    (void)events, (void)domid, (void)remote_port;
    return some_port;
}

int xenevtchn_unbind(void *events, uint32_t port) {
    (void)events, (void)port;
    return 0;
}

int xenevtchn_unmask(void *events, uint32_t port) {
    (void)events, (void)port;
    return 0;
}

int xenevtchn_notify(void *events, uint32_t port) {
    (void)events, (void)port;
    return 0;
}

int xenevtchn_pending(void *events) {
    (void)events;
    errno = EAGAIN;
    return -1;
}

void *xengnttab_open(void *logger, unsigned flags) {
    (void)logger, (void)flags;
    return &handle;
}

int xengnttab_close(void *grants) {
    (void)grants;
    return 0;
}

int xengnttab_set_max_grants(void *grants, uint32_t count) {
    (void)grants, (void)count;
    return 0;
}

void *xengnttab_map_grant_ref(void *grants, uint32_t domid, uint32_t reference, int protection) {
    (void)grants, (void)domid, (void)reference, (void)protection;
    if (getenv("FAKE_XEN_GRANTS")) {
        void *page = mmap(NULL, ring_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return page == MAP_FAILED ? NULL : page;
    }
    errno = EINVAL;
    return NULL;
}

int xengnttab_unmap(void *grants, void *address, uint32_t count) {
    (void)grants, (void)address, (void)count;
    return 0;
}

static int file_with(const char *text, long bytes) {
    int fd = memfd_create("fake-xen", 0);
    if (fd < 0)
        return fd;
    if (ftruncate(fd, bytes) < 0 || pwrite(fd, text, strlen(text), 0) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;
    va_end(rest);
    if (strcmp(path, "/proc/xen/xsd_port") == 0)
        return file_with("1", 1);
    if (strcmp(path, "/proc/xen/xsd_kva") == 0)
        return file_with("", ring_bytes);
    int (*next)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
    return next(path, flags, mode);
}
