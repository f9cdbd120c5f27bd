/* SPDX-License-Identifier: MIT */
/*
 * Lazy memory through userfaultfd(2): the one thread of the library's own.
 *
 * A region served this way is a memslot from the start; what is not present is
 * missing in the host's page tables. Whoever touches it, a vCPU inside KVM or
 * a thread of this process, sleeps until the server has taken the space's lock
 * and made it present: by UFFDIO_COPY in the host, where content and mapping
 * appear in one step, and then in the table. A leaf therefore never stands for
 * a missing page, and a reader never sleeps here. Should the second step fail,
 * the page stays: its content is right, and the next fault finds it there.
 *
 * See Documentation/admin-guide/mm/userfaultfd.rst of the Linux kernel.
 */
#include "space.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MESSAGES     32
#define BOUNCE_BYTES (UINT64_C(2) << 20)
#define MAX_FAILURES 64

/* Linux 5.11 and 6.1; the headers may be older. */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

/* A page whose content could not be had, inaccessible until it is taken. */
struct failure {
	uint64_t host;
	uint64_t gpa;
};

struct uffd {
	int fd;
	int stop_fd;
	pthread_t thread;
	bool minor;   /* MINOR faults of shared memory are supported */
	void *bounce; /* BOUNCE_BYTES, zero unless a filler runs */
	pthread_mutex_t failure_lock;
	struct failure failures[MAX_FAILURES];
	_Atomic(size_t) failure_count;
};

/* ---- Opening
 * ----------------------------------------------------------------- */

/* Tries the device, then the system call; says what was refused. */
static int open_uffd(struct gpas *space)
{
	int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	int device_error = errno;
	int fd = -1;

	if (device >= 0) {
		fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
		device_error = errno;
		close(device);
	}
	if (fd < 0) {
		fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	}
	if (fd < 0) {
		int error = errno;

		space_log(space, GPAS_LOG_ERROR,
			  "no userfaultfd: /dev/userfaultfd: %s; the system "
			  "call: %s. Run as root, or allow access to "
			  "/dev/userfaultfd, or set the sysctl "
			  "vm.unprivileged_userfaultfd to 1",
			  strerror(device_error), strerror(error));
		return -error;
	}
	return fd;
}

/* Agrees on features: MINOR for shared memory where the kernel has it. */
static int negotiate(struct uffd *uffd)
{
	struct uffdio_api api = { .api = UFFD_API };

	if (ioctl(uffd->fd, UFFDIO_API, &api) != 0) {
		return -errno;
	}
	uffd->minor = (api.features & UFFD_FEATURE_MINOR_SHMEM) != 0;
	return 0;
}

/* ---- Installing pages
 * -------------------------------------------------------- */

static int wake(const struct uffd *uffd, uint64_t host, uint64_t size)
{
	struct uffdio_range range = { .start = host, .len = size };

	return ioctl(uffd->fd, UFFDIO_WAKE, &range) != 0 ? -errno : 0;
}

/* The page is in its file already: only the mapping is missing. */
static int map_existing(const struct uffd *uffd, uint64_t host)
{
	struct uffdio_continue existing = {
		.range = { .start = host, .len = GPAS_PAGE_BYTES },
	};

	if (uffd->minor && ioctl(uffd->fd, UFFDIO_CONTINUE, &existing) == 0) {
		return 0;
	}
	return wake(uffd, host, GPAS_PAGE_BYTES);
}

/* Copies @size bytes of the bounce buffer to @host; pages that are there
 * already stay as they are. */
static int copy_pages(const struct uffd *uffd, uint64_t host, uint64_t size)
{
	uint64_t done = 0;

	while (done < size) {
		struct uffdio_copy copy = {
			.dst = host + done,
			.src = gpas_hva_of(uffd->bounce).value + done,
			.len = size - done,
		};
		int error;

		if (ioctl(uffd->fd, UFFDIO_COPY, &copy) == 0) {
			return 0;
		}
		error = errno;
		if (copy.copy > 0) {
			done += (uint64_t)copy.copy;
		} else if (error == EEXIST) {
			(void)map_existing(uffd, host + done);
			done += GPAS_PAGE_BYTES;
		} else if (error != EAGAIN) {
			return -error;
		}
	}
	return 0;
}

/* Makes a failed page missing again. Under failure_lock; the last entry takes
 * its place. Returns its GPA. */
static uint64_t give_back(struct uffd *uffd, size_t index)
{
	struct failure failure = uffd->failures[index];

	uffd->failures[index] = uffd->failures[--uffd->failure_count];
	(void)mprotect(gpas_hva_pointer(gpas_hva_at(failure.host)),
		       GPAS_PAGE_BYTES, PROT_READ | PROT_WRITE);
	return failure.gpa;
}

/* Has whoever waits for the page get an error instead. With too many of them
 * one is given up: its toucher, if there still is one, faults again. */
static void fail_page(struct uffd *uffd, uint64_t host, uint64_t gpa)
{
	pthread_mutex_lock(&uffd->failure_lock);
	if (uffd->failure_count == MAX_FAILURES) {
		(void)give_back(uffd, 0);
	}
	if (mprotect(gpas_hva_pointer(gpas_hva_at(host)), GPAS_PAGE_BYTES,
		     PROT_NONE) == 0) {
		uffd->failures[uffd->failure_count++] =
			(struct failure){ .host = host, .gpa = gpa };
	}
	pthread_mutex_unlock(&uffd->failure_lock);
	(void)wake(uffd, host, GPAS_PAGE_BYTES);
}

bool uffd_take_failure(struct gpas *space, uint64_t *gpa)
{
	struct uffd *uffd = __atomic_load_n(&space->uffd, __ATOMIC_ACQUIRE);
	bool taken = false;

	if (uffd == NULL || atomic_load(&uffd->failure_count) == 0) {
		return false;
	}
	pthread_mutex_lock(&uffd->failure_lock);
	if (uffd->failure_count > 0) {
		*gpa = give_back(uffd, uffd->failure_count - 1);
		taken = true;
	}
	pthread_mutex_unlock(&uffd->failure_lock);
	return taken;
}

void uffd_forget_failures(struct gpas *space, uint64_t host, uint64_t size)
{
	struct uffd *uffd = space->uffd;
	size_t index = 0;

	if (uffd == NULL || atomic_load(&uffd->failure_count) == 0) {
		return;
	}
	pthread_mutex_lock(&uffd->failure_lock);
	while (index < uffd->failure_count) {
		if (uffd->failures[index].host - host < size) {
			(void)give_back(uffd, index);
		} else {
			index++;
		}
	}
	pthread_mutex_unlock(&uffd->failure_lock);
}

int uffd_provide(struct gpas *space, const struct backing *backing,
		 uint64_t offset, uint64_t size)
{
	const struct gpas_filler *filler = &backing->filler;
	struct uffd *uffd = space->uffd;
	uint64_t end = offset + size;
	int err = 0;

	while (err == 0 && offset < end) {
		uint64_t piece = end - offset;

		if (piece > BOUNCE_BYTES) {
			piece = BOUNCE_BYTES;
		}
		if (filler->fill != NULL) {
			memset(uffd->bounce, 0, piece);
			err = filler->fill(
				filler->ctx,
				gpas_gpa_at(backing->uffd_gpa + offset),
				uffd->bounce, piece);
		}
		if (err == 0) {
			uffd_forget_failures(space, backing->host + offset,
					     piece);
			err = copy_pages(uffd, backing->host + offset, piece);
		}
		offset += piece;
	}
	if (filler->fill != NULL) {
		memset(uffd->bounce, 0, BOUNCE_BYTES);
	}
	return err;
}

/* ---- Serving
 * ----------------------------------------------------------------- */

/* The GPA of a host address, by the backing it belongs to. Under the lock. */
static int find_gpa(const struct gpas *space, uint64_t host, uint64_t *gpa)
{
	const struct backing *backing;

	for (backing = space->uffd_backings; backing != NULL;
	     backing = backing->uffd_next) {
		if (host - backing->host < gpas_memory_size(backing->memory)) {
			*gpa = backing->uffd_gpa + (host - backing->host);
			return 0;
		}
	}
	return -ENOENT;
}

/* Serves one touch of a missing page. */
static void serve(struct gpas *space, uint64_t host)
{
	struct resolution found;
	uint64_t gpa;
	bool locked = space_lock(space);
	int err = find_gpa(space, host, &gpa);

	space_unlock(space, locked);
	count(&space->stats.uffd_faults, 1);
	if (err != 0) {
		/* The region went while the message was under way. */
		(void)wake(space->uffd, host, GPAS_PAGE_BYTES);
		return;
	}
	err = fault_resolve(space, gpa, 0, 0, &found);
	if (err == 0 && found.fault.kind == GPAS_FAULT_RESUME) {
		if (found.fault.populated == 0) {
			/* Another toucher came first, or only the mapping of a
			 * page that exists is missing. */
			(void)map_existing(space->uffd, host);
		}
		return;
	}
	fail_page(space->uffd, host, gpa);
}

static void *server(void *arg)
{
	struct gpas *space = arg;
	struct uffd *uffd = space->uffd;
	struct pollfd polls[] = {
		{ .fd = uffd->fd, .events = POLLIN },
		{ .fd = uffd->stop_fd, .events = POLLIN },
	};
	struct uffd_msg messages[MESSAGES];

	while (poll(polls, 2, -1) >= 0 || errno == EINTR) {
		ssize_t got;

		if ((polls[1].revents & POLLIN) != 0) {
			break;
		}
		got = read(uffd->fd, messages, sizeof(messages));
		for (ssize_t i = 0; i < got / (ssize_t)sizeof(*messages); i++) {
			if (messages[i].event == UFFD_EVENT_PAGEFAULT) {
				serve(space,
				      gpas_align_down(
					      messages[i].arg.pagefault.address,
					      GPAS_PAGE_BYTES));
			}
		}
	}
	return NULL;
}

/* ---- Life
 * -------------------------------------------------------------------- */

static void uffd_free(struct uffd *uffd)
{
	if (uffd->fd >= 0) {
		close(uffd->fd);
	}
	if (uffd->stop_fd >= 0) {
		close(uffd->stop_fd);
	}
	if (uffd->bounce != MAP_FAILED) {
		munmap(uffd->bounce, BOUNCE_BYTES);
	}
	pthread_mutex_destroy(&uffd->failure_lock);
	free(uffd);
}

static int uffd_init(struct gpas *space, struct uffd *uffd)
{
	uffd->stop_fd = -1;
	uffd->bounce = mmap(NULL, BOUNCE_BYTES, PROT_READ | PROT_WRITE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uffd->fd = open_uffd(space);
	if (uffd->fd < 0) {
		return uffd->fd;
	}
	uffd->stop_fd = eventfd(0, EFD_CLOEXEC);
	if (uffd->stop_fd < 0 || uffd->bounce == MAP_FAILED) {
		return -ENOMEM;
	}
	return negotiate(uffd);
}

static int uffd_start(struct gpas *space)
{
	struct uffd *uffd;
	int err;

	if (space->uffd != NULL) {
		return 0;
	}
	uffd = calloc(1, sizeof(*uffd));
	if (uffd == NULL) {
		return -ENOMEM;
	}
	pthread_mutex_init(&uffd->failure_lock, NULL);
	err = uffd_init(space, uffd);
	if (err == 0) {
		__atomic_store_n(&space->uffd, uffd, __ATOMIC_RELEASE);
		err = -pthread_create(&uffd->thread, NULL, server, space);
	}
	if (err != 0) {
		__atomic_store_n(&space->uffd, NULL, __ATOMIC_RELEASE);
		uffd_free(uffd);
	}
	return err;
}

int uffd_add(struct gpas *space, struct backing *backing, uint64_t gpa)
{
	struct uffdio_register range = {
		.range = { .start = backing->host,
			   .len = gpas_memory_size(backing->memory) },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int err = uffd_start(space);

	if (err != 0) {
		return err;
	}
	if (space->uffd->minor &&
	    gpas_memory_kind(backing->memory) == GPAS_MEMORY_MEMFD) {
		range.mode |= UFFDIO_REGISTER_MODE_MINOR;
	}
	if (ioctl(space->uffd->fd, UFFDIO_REGISTER, &range) != 0) {
		return -errno;
	}
	backing->uffd = true;
	backing->uffd_gpa = gpa;
	backing->uffd_next = space->uffd_backings;
	space->uffd_backings = backing;
	return 0;
}

void uffd_remove(struct gpas *space, struct backing *backing)
{
	struct backing **link = &space->uffd_backings;

	while (*link != NULL && *link != backing) {
		link = &(*link)->uffd_next;
	}
	if (*link == backing) {
		*link = backing->uffd_next;
	}
}

void uffd_stop(struct gpas *space)
{
	struct uffd *uffd = space->uffd;
	const uint64_t one = 1;

	if (uffd == NULL) {
		return;
	}
	if (write(uffd->stop_fd, &one, sizeof(one)) == sizeof(one)) {
		pthread_join(uffd->thread, NULL);
	}
	space->uffd = NULL;
	uffd_free(uffd);
}
