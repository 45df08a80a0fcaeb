/* What the C xenstored needs of Xen, served from a folder: preloaded, it lets the real daemon run on any Linux.

   $FAKE_XEN_DIR/page-<domid>   the ring page of a domain, mapped shared with the test
   $FAKE_XEN_DIR/events         a FIFO: the test writes a domain's port (32 bits) to it to send an event

   The daemon's own port for a domain is 1000 + its number. Events to a domain are not sent: a test looks at the page. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int events = -1;

static const char *in_dir(const char *name, unsigned number)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/", getenv("FAKE_XEN_DIR"));
    snprintf(path + strlen(path), sizeof path - strlen(path), name, number);
    return path;
}

void *xenevtchn_open(void *logger, unsigned flags)
{
    events = open(in_dir("events", 0), O_RDWR | O_NONBLOCK);
    return &events;
}

void *xenevtchn_fdopen(void *logger, int fd, unsigned flags) { return xenevtchn_open(logger, flags); }
int xenevtchn_fd(void *handle) { return events; }
int xenevtchn_bind_interdomain(void *handle, uint32_t domid, uint32_t port) { return 1000 + domid; }
int xenevtchn_bind_virq(void *handle, unsigned virq) { return 1; }
int xenevtchn_notify(void *handle, uint32_t port) { return 0; }
int xenevtchn_unmask(void *handle, uint32_t port) { return 0; }
int xenevtchn_unbind(void *handle, uint32_t port) { return 0; }

int xenevtchn_pending(void *handle)
{
    uint32_t port;
    return read(events, &port, sizeof port) == sizeof port ? (int)port : -1;
}

void *xengnttab_open(void *logger, unsigned flags) { return &events; }
int xengnttab_close(void *handle) { return 0; }
int xengnttab_set_max_grants(void *handle, uint32_t count) { return 0; }

void *xengnttab_map_grant_ref(void *handle, uint32_t domid, uint32_t ref, int prot)
{
    int fd = open(in_dir("page-%u", domid), O_RDWR);
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    return page == MAP_FAILED ? NULL : page;
}

int xengnttab_unmap(void *handle, void *page, uint32_t count) { return munmap(page, 4096 * count); }

void *xc_interface_open(void *logger, void *other, unsigned flags) { return &events; }
int xc_interface_close(void *handle) { return 0; }

int xc_domain_getinfo(void *handle, uint32_t domid, unsigned count, void *info)
{
    memset(info, 0, 96); /* running; the struct is longer than what the daemon looks at */
    memcpy(info, &domid, sizeof domid);
    return 1;
}

int open(const char *path, int flags, ...)
{
    static int (*libc_open)(const char *, int, ...);
    va_list rest;
    int mode, fd;

    if (!libc_open)
        libc_open = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
    va_start(rest, flags);
    mode = va_arg(rest, int);
    va_end(rest);
    if (strstr(path, "xsd_kva")) { /* the ring page of domain 0, which nobody uses */
        fd = memfd_create("kva", 0);
        return ftruncate(fd, 4096) ? -1 : fd;
    }
    if (strstr(path, "xsd_port")) {
        fd = memfd_create("port", 0);
        return write(fd, "1", 1) == 1 && lseek(fd, 0, SEEK_SET) == 0 ? fd : -1;
    }
    return libc_open(path, flags, mode);
}
