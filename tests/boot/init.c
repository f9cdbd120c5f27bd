/* SPDX-License-Identifier: MIT */
/*
 * The first and only process of the kernels that tests/boot boots. It uses
 * memory in the ways programs do, says what it found, and ends the machine in
 * the way its argument asks for (the kernel passes on words of its command
 * line that it does not know):
 *
 *   end=off | reboot | panic | echo | hang
 *   touch=MIB   how much memory to write and verify (32)
 *   cpus=N      how many processors there must be (1)
 */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static int failures;

static void result(const char *what, int good)
{
	printf("boot-test: %s: %s\n", what, good ? "ok" : "FAILED");
	fflush(stdout);
	failures += !good;
}

/* A different value for each word, so that a page in the wrong place shows. */
static uint64_t mix(uint64_t i)
{
	i = (i ^ i >> 31) * UINT64_C(0x9e3779b97f4a7c15);
	return i ^ i >> 29;
}

static void write_and_verify(size_t mib)
{
	size_t count = (mib << 20) / sizeof(uint64_t), bad = 0;
	uint64_t *words = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE,
			       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	size_t dirty = 0;

	if (words == MAP_FAILED) {
		result("memory", 0);
		return;
	}
	/* One word a page first: is fresh memory zero? */
	for (size_t i = 0; i < count; i += 512) {
		dirty += words[i] != 0;
	}
	for (size_t i = 0; i < count; i++) {
		words[i] = mix(i);
	}
	for (size_t i = 0; i < count; i++) {
		bad += words[i] != mix(i);
	}
	result("memory", bad == 0 && dirty == 0);
	munmap(words, mib << 20);
}

/* Children that write what they share with their parent get copies. */
static void fork_and_copy(void)
{
	enum {
		children = 4,
		bytes = 1 << 20
	};
	uint8_t *shared = malloc(bytes);
	int good = shared != NULL;

	memset(shared, 0x11, bytes);
	for (int i = 0; i < children; i++) {
		pid_t child = fork();

		if (child == 0) {
			memset(shared, i, bytes);
			for (size_t at = 0; at < bytes; at += 333) {
				if (shared[at] != i) {
					_exit(1);
				}
			}
			_exit(40 + i);
		}
		good &= child > 0;
	}
	for (int i = 0; i < children; i++) {
		int status = 0;

		good &= wait(&status) > 0 && WIFEXITED(status) &&
			WEXITSTATUS(status) >= 40;
	}
	for (size_t at = 0; at < bytes; at++) {
		good &= shared[at] == 0x11;
	}
	free(shared);
	result("fork", good);
}

static void use_tmpfs(void)
{
	static uint8_t block[1 << 16], back[1 << 16];
	int good = mount("tmpfs", "/mnt", "tmpfs", 0, NULL) == 0, fd;

	fd = open("/mnt/file", O_RDWR | O_CREAT, 0600);
	for (int i = 0; good && i < 64; i++) {
		memset(block, i + 1, sizeof(block));
		good &= write(fd, block, sizeof(block)) == sizeof(block);
	}
	good &= lseek(fd, 0, SEEK_SET) == 0;
	for (int i = 0; good && i < 64; i++) {
		memset(block, i + 1, sizeof(block));
		good &= read(fd, back, sizeof(back)) == sizeof(back) &&
			memcmp(block, back, sizeof(back)) == 0;
	}
	close(fd);
	good &= unlink("/mnt/file") == 0 && umount("/mnt") == 0;
	result("tmpfs", good);
}

/* Every processor must be there and do work of its own. */
static void use_cpus(int wanted)
{
	int count = (int)sysconf(_SC_NPROCESSORS_ONLN), good = count == wanted;

	for (int i = 0; i < count; i++) {
		cpu_set_t set;

		CPU_ZERO(&set);
		CPU_SET(i, &set);
		good &= sched_setaffinity(0, sizeof(set), &set) == 0 &&
			sched_getcpu() == i;
	}
	printf("boot-test: %d processors\n", count);
	result("processors", good);
}

static void use_clock(void)
{
	struct timespec begun, ended, pause = { .tv_nsec = 50000000 };
	int64_t ms;

	clock_gettime(CLOCK_MONOTONIC, &begun);
	nanosleep(&pause, NULL);
	clock_gettime(CLOCK_MONOTONIC, &ended);
	ms = (ended.tv_sec - begun.tv_sec) * 1000 +
	     (ended.tv_nsec - begun.tv_nsec) / 1000000;
	result("clock", ms >= 50 && ms < 20000);
}

static void show_file(const char *path, const char *prefix)
{
	char line[256];
	FILE *file = fopen(path, "r");

	while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
		if (strncmp(line, prefix, strlen(prefix)) == 0) {
			printf("boot-test: %s", line);
		}
	}
	if (file != NULL) {
		fclose(file);
	}
}

static int open_console(void)
{
	int fd;

	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mkdir("/sys", 0755);
	mkdir("/mnt", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("sys", "/sys", "sysfs", 0, NULL);
	fd = open("/dev/console", O_RDWR);
	if (fd >= 0) {
		dup2(fd, 0);
		dup2(fd, 1);
		dup2(fd, 2);
	}
	return fd;
}

/* What is typed comes back reversed, until an empty line. */
static void echo(void)
{
	char line[256];

	printf("boot-test: type\n");
	fflush(stdout);
	while (fgets(line, sizeof(line), stdin) != NULL && line[0] != '\n') {
		size_t length = strcspn(line, "\n");

		printf("boot-test: ");
		while (length > 0) {
			putchar(line[--length]);
		}
		putchar('\n');
		fflush(stdout);
	}
}

static void end(const char *how)
{
	sync();
	tcdrain(1); /* or the kernel's last words come in between */
	if (strcmp(how, "reboot") == 0) {
		reboot(RB_AUTOBOOT);
	} else if (strcmp(how, "panic") == 0) {
		exit(3); /* the kernel cannot do without its first process */
	} else if (strcmp(how, "hang") == 0) {
		for (;;) {
			pause();
		}
	}
	reboot(RB_POWER_OFF);
}

int main(void)
{
	const char *how = getenv("end"), *touch = getenv("touch");
	const char *cpus = getenv("cpus");
	struct timespec now;

	open_console();
	clock_gettime(CLOCK_MONOTONIC, &now);
	printf("boot-test: began %ld.%02ld s after the kernel\n",
	       (long)now.tv_sec, now.tv_nsec / 10000000);
	show_file("/proc/version", "Linux");
	show_file("/proc/meminfo", "MemTotal");
	use_cpus(cpus != NULL ? atoi(cpus) : 1);
	write_and_verify(touch != NULL ? (size_t)atoi(touch) : 32);
	fork_and_copy();
	use_tmpfs();
	use_clock();
	if (how != NULL && strcmp(how, "echo") == 0) {
		echo();
	}
	printf("boot-test: %s\n", failures == 0 ? "passed" : "FAILED");
	fflush(stdout);
	end(how != NULL ? how : "off");
	return 1;
}
