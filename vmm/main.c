/* SPDX-License-Identifier: MIT */
/* The command line of gpas-vmm: commands, options, help. */
#include "vm.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#ifndef GPAS_VERSION
#define GPAS_VERSION "unknown"
#endif

static const char overview[] =
	"gpas-vmm runs small x86-64 guests on Linux KVM with their memory "
	"under libgpas.\n"
	"\n"
	"usage: gpas-vmm COMMAND [OPTION...]\n"
	"\n"
	"commands:\n";

static const char overview_end[] =
	"\n"
	"\"gpas-vmm COMMAND --help\" says more; --version says which this is."
	"\n";

static const char run_help[] =
	"usage: gpas-vmm run [OPTION...] GUEST\n"
	"\n"
	"Runs GUEST, a statically linked ELF64 executable or a flat binary "
	"(loaded and\n"
	"entered at 0x100000), on one virtual processor, and exits with what "
	"it reports.\n"
	"The guest starts in 64-bit mode with every address mapped to itself "
	"and rdi =\n"
	"the address of a device tree that describes everything else. Its "
	"output is on\n"
	"stdout; all that gpas-vmm has to say is on stderr.\n"
	"\n"
	"memory:\n"
	"  --mem SIZE       how much the guest has (128M); SIZE takes K, M, G, "
	"T\n"
	"  --lazy HOW       when it becomes present (auto)\n"
	"                     off   at once\n"
	"                     trap  at first touch, which a memslot turns into "
	"a memory\n"
	"                           fault exit (Linux 6.18 or newer)\n"
	"                     mmio  at first touch, which KVM takes for a "
	"device access\n"
	"                     auto  trap where the kernel offers it, else "
	"mmio\n"
	"                     uffd  at first touch, without an exit: "
	"userfaultfd (root,\n"
	"                           access to /dev/userfaultfd, or the sysctl\n"
	"                           vm.unprivileged_userfaultfd)\n"
	"  --granule SIZE   how much a first touch makes present, a power of "
	"two from 4K\n"
	"                   to 1G; without it 64K, growing up to 64M (uffd: "
	"2M) while\n"
	"                   touches come in sequence or close together\n"
	"  --budget SIZE    the most that may be present at once, the guest's "
	"own file\n"
	"                   and page tables included; beyond it, what the "
	"guest offered\n"
	"                   is taken back, else the touch is denied\n"
	"  --restore FILE[@OFFSET]\n"
	"                   what RAM holds at the start: byte OFFSET + n of "
	"FILE is\n"
	"                   address n of the guest. Read as it is touched, "
	"never\n"
	"                   written; must not shrink meanwhile. OFFSET and "
	"size are\n"
	"                   whole pages; beyond the end RAM is zero\n"
	"  --save FILE      at the end, write RAM to FILE in this layout, "
	"zeros as holes;\n"
	"                   FILE may be the one restored. Processors are not "
	"saved: a\n"
	"                   guest always starts at its entry\n"
	"\n"
	"the guest:\n"
	"  --append ARGS    its bootargs, in /chosen of the device tree\n"
	"  --on-violation stop|continue\n"
	"                   what to do after an access that memory or budget "
	"forbids: end\n"
	"                   the run (stop), or drop the write or let the read "
	"give all\n"
	"                   ones; not where KVM would only repeat the access: "
	"a fetch,\n"
	"                   or a touch of lazy memory seen by trap or uffd\n"
	"  --timeout SEC    end the run after so many seconds\n"
	"\n"
	"looking inside:\n"
	"  --map            draw the memory map before and after the run\n"
	"  --stats          count faults, exits, memory and time, and draw how "
	"long\n"
	"                   faults took\n"
	"  --trace FILE     write a line for each exit but served device "
	"accesses\n"
	"                   (touches that uffd serves are no exits)\n"
	"  --dtb-out FILE   write the device tree (then: dtc -I dtb -O dts "
	"FILE)\n"
	"  --verbose        say what the library decides\n"
	"\n"
	"exit status:\n"
	"  0-63   the guest's own exit code (63 also for larger ones)\n"
	"  64     the command line is wrong\n"
	"  65     the guest's file cannot be used, or does not fit into --mem, "
	"or\n"
	"         --restore names a file that cannot be used\n"
	"  77     no usable KVM, or the host lacks or refuses the mechanism "
	"asked for\n"
	"  100    the guest did what its memory does not allow\n"
	"  101    the guest crashed (exception, triple fault, KVM internal "
	"error)\n"
	"  102    the host failed\n"
	"  103    a check of the guest failed\n"
	"  104    the guest ran longer than --timeout\n"
	"  105    the guest halted with nothing to wake it\n"
	"  106    the guest needs more memory than --budget allows\n"
	"  128+N  stopped by signal N\n"
	"\n"
	"examples:\n"
	"  Say hello, then hand over an exit code:\n"
	"    gpas-vmm run --append code=7 build/guests/hello; echo $?\n"
	"  Watch memory become present, 64 KiB at a time, in user mode:\n"
	"    gpas-vmm run --mem 256M --granule 64K --map --stats \\\n"
	"        --append cpl=3 build/guests/sweep\n"
	"  See what happens to a guest that writes to its own code:\n"
	"    gpas-vmm run --append try=text build/guests/perms\n"
	"  Let it carry on, and keep a record of every exit:\n"
	"    gpas-vmm run --on-violation continue --trace /dev/stderr \\\n"
	"        build/guests/perms\n"
	"  Save RAM, and start again with it, twice:\n"
	"    gpas-vmm run --save ram build/guests/snapshot\n"
	"    gpas-vmm run --restore ram --save ram build/guests/snapshot\n"
	"    gpas-vmm run --restore ram --lazy uffd --stats "
	"build/guests/snapshot\n"
	"  Live in less memory than one uses, by offering what can go:\n"
	"    gpas-vmm run --budget 16M --stats --append mode=offer \\\n"
	"        build/guests/balloon\n";

static const char boot_help[] =
	"usage: gpas-vmm boot --kernel FILE [OPTION...]\n"
	"\n"
	"Boots Linux, a bzImage or an ELF vmlinux with a PVH entry, on a PC "
	"that has\n"
	"memory, processors, interrupt controllers, ACPI and a serial port at "
	"0x3f8\n"
	"(ttyS0), which is stdin and stdout. On a terminal, Ctrl-A x ends the "
	"run.\n"
	"\n"
	"  --kernel FILE    the kernel\n"
	"  --initrd FILE    its initial file system\n"
	"  --dtb FILE       a device tree for it, in addition to ACPI; only "
	"kernels with\n"
	"                   CONFIG_OF look at it\n"
	"  --append ARGS    its command line (console=ttyS0); give panic=-1 to "
	"have a\n"
	"                   panic end the run\n"
	"  --cpus N         processors, 1 to 16 (1)\n"
	"  --mem SIZE       memory (512M), the hole at 640K included; above 3G "
	"it goes on\n"
	"                   at 4G\n"
	"  --module SIZE    a memory module, in steps of 128M, that is not "
	"there at\n"
	"                   first: Ctrl-A m on a terminal plugs it in, or asks "
	"the guest\n"
	"                   for it, and so does the doorbell's register 0x40 "
	"(see\n"
	"                   docs/boot.md)\n"
	"  --on-violation continue|stop\n"
	"                   what to do when the guest touches what is not "
	"there, or\n"
	"                   writes to what is sealed: as a PC does, let reads "
	"give all\n"
	"                   ones and drop writes (continue), or end the run\n"
	"  --lazy HOW, --granule SIZE, --timeout SEC, --map, --stats, --trace "
	"FILE,\n"
	"  --verbose        as for run\n"
	"\n"
	"exit status:\n"
	"  0      the guest turned the machine off\n"
	"  64     the command line is wrong\n"
	"  65     kernel or initrd cannot be used, or do not fit into --mem\n"
	"  77     no usable KVM, or it lacks the mechanism asked for\n"
	"  100    the guest did what its memory does not allow (--on-violation "
	"stop)\n"
	"  101    the guest crashed (triple fault, KVM internal error)\n"
	"  102    the host failed\n"
	"  104    the guest ran longer than --timeout\n"
	"  107    the guest reset the machine (reboot)\n"
	"  108    its kernel panicked: it said so at port 0x505, or on its "
	"console before\n"
	"         a reset\n"
	"  128+N  stopped by signal N; 130 also by Ctrl-A x\n"
	"\n"
	"example:\n"
	"  gpas-vmm boot --kernel vmlinuz --initrd initramfs --cpus 2 --mem 8G "
	"--stats \\\n"
	"      --append \"console=ttyS0 panic=-1\"\n";

/* One line on stderr that says what to do about a wrong command line. */
__attribute__((format(printf, 1, 2))) static int usage(const char *format, ...)
{
	va_list args;

	fputs("gpas-vmm: ", stderr);
	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputs("; see gpas-vmm COMMAND --help\n", stderr);
	return STATUS_USAGE;
}

/* ---- Values -------------------------------------------------------------- */

static int suffix_shift(const char *suffix)
{
	static const char letters[] = "KMGT";
	const char *at;

	if (*suffix == '\0') {
		return 0;
	}
	at = strchr(letters, *suffix >= 'a' ? *suffix - 'a' + 'A' : *suffix);
	if (at == NULL || suffix[1] != '\0') {
		return -1;
	}
	return 10 * (int)(at - letters + 1);
}

/* "64K", "1G", "4096": bytes. */
static bool parse_size(const char *text, uint64_t *ret)
{
	char *suffix;
	unsigned long long value;
	int shift;

	if (*text < '0' || *text > '9') {
		return false;
	}
	errno = 0;
	value = strtoull(text, &suffix, 0);
	shift = suffix_shift(suffix);
	if (errno != 0 || shift < 0 || value > UINT64_MAX >> shift) {
		return false;
	}
	*ret = (uint64_t)value << shift;
	return true;
}

static int parse_mem(const char *text, struct options *options)
{
	if (!parse_size(text, &options->mem) || options->mem == 0 ||
	    !gpas_is_aligned(options->mem, GPAS_PAGE_BYTES)) {
		return usage("--mem %s is not a size in whole pages of 4K",
			     text);
	}
	return 0;
}

static int parse_granule(const char *text, struct options *options)
{
	uint64_t size = 0;

	if (!parse_size(text, &size) || size < GPAS_PAGE_BYTES ||
	    size > UINT64_C(1) << 30 || (size & (size - 1)) != 0) {
		return usage("--granule %s is not a power of two from 4K to 1G",
			     text);
	}
	options->granule = size;
	return 0;
}

static int parse_lazy(const char *text, struct options *options)
{
	options->eager = strcmp(text, "off") == 0;
	if (options->eager || strcmp(text, "auto") == 0) {
		options->lazy = GPAS_LAZY_AUTO;
	} else if (strcmp(text, "trap") == 0) {
		options->lazy = GPAS_LAZY_TRAP;
	} else if (strcmp(text, "mmio") == 0) {
		options->lazy = GPAS_LAZY_ABSENT;
	} else if (strcmp(text, "uffd") == 0) {
		options->lazy = GPAS_LAZY_UFFD;
	} else {
		return usage("--lazy %s is none of auto, trap, mmio, uffd, off",
			     text);
	}
	return 0;
}

static int parse_budget(const char *text, struct options *options)
{
	if (!parse_size(text, &options->budget) || options->budget == 0) {
		return usage("--budget %s is not a size", text);
	}
	return 0;
}

/* "FILE" or "FILE@OFFSET"; @text is cut at the offset. A name that has an "@"
 * of its own can be followed by "@0". */
static int parse_restore(char *text, struct options *options)
{
	char *at = strrchr(text, '@');

	options->restore = text;
	options->restore_offset = 0;
	if (at == NULL) {
		return 0;
	}
	if (!parse_size(at + 1, &options->restore_offset) ||
	    options->restore_offset > INT64_MAX ||
	    !gpas_is_aligned(options->restore_offset, GPAS_PAGE_BYTES)) {
		return usage("--restore %s: what follows the @ is not an "
			     "offset in whole pages of 4K",
			     text);
	}
	*at = '\0';
	return 0;
}

static int parse_violation(const char *text, struct options *options)
{
	options->carry_on = strcmp(text, "continue") == 0;
	if (!options->carry_on && strcmp(text, "stop") != 0) {
		return usage("--on-violation %s is neither stop nor continue",
			     text);
	}
	return 0;
}

static int parse_cpus(const char *text, struct options *options)
{
	uint64_t count = 0;

	if (!parse_size(text, &count) || count == 0 || count > VCPU_MAX) {
		return usage("--cpus %s is not a number from 1 to %d", text,
			     VCPU_MAX);
	}
	options->cpus = (unsigned)count;
	return 0;
}

static int parse_module(const char *text, struct options *options)
{
	if (!parse_size(text, &options->module) || options->module == 0) {
		return usage("--module %s is not a size", text);
	}
	return 0;
}

static int parse_timeout(const char *text, struct options *options)
{
	uint64_t seconds = 0;

	if (!parse_size(text, &seconds) || seconds == 0 ||
	    seconds > INT_MAX / 1000) {
		return usage("--timeout %s is not a number of seconds", text);
	}
	options->timeout_s = (unsigned)seconds;
	return 0;
}

/* ---- Options ------------------------------------------------------------- */

/* The commands that an option belongs to. */
enum {
	RUN = 1 << 0,
	BOOT = 1 << 1,
};

enum option_id {
	OPTION_MEM,
	OPTION_LAZY,
	OPTION_GRANULE,
	OPTION_BUDGET,
	OPTION_RESTORE,
	OPTION_SAVE,
	OPTION_APPEND,
	OPTION_VIOLATION,
	OPTION_TIMEOUT,
	OPTION_MAP,
	OPTION_STATS,
	OPTION_TRACE,
	OPTION_DTB_OUT,
	OPTION_VERBOSE,
	OPTION_KERNEL,
	OPTION_INITRD,
	OPTION_DTB,
	OPTION_CPUS,
	OPTION_MODULE,
	OPTION_HELP,
	OPTION_COUNT,
};

static const struct {
	const char *name;
	int has_value;
	unsigned commands;
} known_options[OPTION_COUNT] = {
	[OPTION_MEM] = { "mem", required_argument, RUN | BOOT },
	[OPTION_LAZY] = { "lazy", required_argument, RUN | BOOT },
	[OPTION_GRANULE] = { "granule", required_argument, RUN | BOOT },
	[OPTION_BUDGET] = { "budget", required_argument, RUN },
	[OPTION_RESTORE] = { "restore", required_argument, RUN },
	[OPTION_SAVE] = { "save", required_argument, RUN },
	[OPTION_APPEND] = { "append", required_argument, RUN | BOOT },
	[OPTION_VIOLATION] = { "on-violation", required_argument, RUN | BOOT },
	[OPTION_TIMEOUT] = { "timeout", required_argument, RUN | BOOT },
	[OPTION_MAP] = { "map", no_argument, RUN | BOOT },
	[OPTION_STATS] = { "stats", no_argument, RUN | BOOT },
	[OPTION_TRACE] = { "trace", required_argument, RUN | BOOT },
	[OPTION_DTB_OUT] = { "dtb-out", required_argument, RUN },
	[OPTION_VERBOSE] = { "verbose", no_argument, RUN | BOOT },
	[OPTION_KERNEL] = { "kernel", required_argument, BOOT },
	[OPTION_INITRD] = { "initrd", required_argument, BOOT },
	[OPTION_DTB] = { "dtb", required_argument, BOOT },
	[OPTION_CPUS] = { "cpus", required_argument, BOOT },
	[OPTION_MODULE] = { "module", required_argument, BOOT },
	[OPTION_HELP] = { "help", no_argument, RUN | BOOT },
};

/* What getopt_long() returns for an option: no character's value. */
#define OPTION_FIRST 256

/* The options of a command, for getopt_long(). */
static void choose_options(unsigned command,
			   struct option table[OPTION_COUNT + 1])
{
	unsigned count = 0;

	for (int id = 0; id < OPTION_COUNT; id++) {
		if ((known_options[id].commands & command) != 0) {
			table[count++] = (struct option){
				.name = known_options[id].name,
				.has_arg = known_options[id].has_value,
				.val = OPTION_FIRST + id,
			};
		}
	}
	table[count] = (struct option){ 0 };
}

static int take_option(int id, char *value, struct options *options)
{
	switch (id) {
	case OPTION_MEM:
		return parse_mem(value, options);
	case OPTION_LAZY:
		return parse_lazy(value, options);
	case OPTION_GRANULE:
		return parse_granule(value, options);
	case OPTION_VIOLATION:
		return parse_violation(value, options);
	case OPTION_TIMEOUT:
		return parse_timeout(value, options);
	case OPTION_BUDGET:
		return parse_budget(value, options);
	case OPTION_RESTORE:
		return parse_restore(value, options);
	case OPTION_SAVE:
		options->save = value;
		return 0;
	case OPTION_APPEND:
		options->append = value;
		return 0;
	case OPTION_TRACE:
		options->trace = value;
		return 0;
	case OPTION_KERNEL:
		options->kernel = value;
		return 0;
	case OPTION_INITRD:
		options->initrd = value;
		return 0;
	case OPTION_DTB:
		options->dtb = value;
		return 0;
	case OPTION_MODULE:
		return parse_module(value, options);
	case OPTION_CPUS:
		return parse_cpus(value, options);
	case OPTION_DTB_OUT:
		options->dtb_out = value;
		return 0;
	case OPTION_MAP:
		options->map = true;
		return 0;
	case OPTION_STATS:
		options->stats = true;
		return 0;
	default:
		options->verbose = true;
		return 0;
	}
}

/* ---- Commands ------------------------------------------------------------ */

/* Take the words that are no options. 0 or an exit status. */
static int finish_run(int count, char **words, struct options *options)
{
	if (count != 1) {
		return usage(count == 0 ? "run needs a guest"
					: "run takes one guest only");
	}
	options->guest = words[0];
	return 0;
}

static int finish_boot(int count, char **words, struct options *options)
{
	(void)words;
	if (options->kernel == NULL) {
		return usage("boot needs --kernel FILE");
	}
	return count == 0 ? 0 : usage("boot takes options only");
}

static const struct command {
	unsigned id;
	const char *name;
	const char *summary;
	const char *help;
	struct options defaults;
	int (*finish)(int count, char **words, struct options *options);
} commands[] = {
	{ .id = RUN,
	  .name = "run",
	  .summary = "run a guest until it says it is done",
	  .help = run_help,
	  .defaults = { .append = "", .mem = UINT64_C(128) << 20, .cpus = 1 },
	  .finish = finish_run },
	{ .id = BOOT,
	  .name = "boot",
	  .summary = "boot a Linux kernel on a small PC",
	  .help = boot_help,
	  .defaults = { .append = "console=ttyS0",
			.mem = UINT64_C(512) << 20,
			.cpus = 1,
			.carry_on = true },
	  .finish = finish_boot },
};
#define COMMAND_COUNT (sizeof(commands) / sizeof(commands[0]))

/* @argv[0] is the command's name. */
static int run_command(const struct command *command, int argc, char **argv)
{
	struct options options = command->defaults;
	struct option table[OPTION_COUNT + 1];
	int id, status = 0;

	choose_options(command->id, table);
	opterr = 0;
	while ((id = getopt_long(argc, argv, ":", table, NULL)) != -1) {
		if (id == OPTION_FIRST + OPTION_HELP) {
			fputs(command->help, stdout);
			return 0;
		}
		if (id == ':') {
			return usage("%s needs a value", argv[optind - 1]);
		}
		if (id == '?') {
			return usage("%s is not an option of %s",
				     argv[optind - 1], command->name);
		}
		status = take_option(id - OPTION_FIRST, optarg, &options);
		if (status != 0) {
			return status;
		}
	}
	status = command->finish(argc - optind, argv + optind, &options);
	return status == 0 ? vm_run(&options) : status;
}

static int command_help(void)
{
	fputs(overview, stdout);
	for (size_t i = 0; i < COMMAND_COUNT; i++) {
		printf("  %-8s %s\n", commands[i].name, commands[i].summary);
	}
	fputs(overview_end, stdout);
	return 0;
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";

	if (strcmp(name, "--help") == 0 || strcmp(name, "help") == 0) {
		return command_help();
	}
	if (strcmp(name, "--version") == 0) {
		printf("gpas-vmm %s\n", GPAS_VERSION);
		return 0;
	}
	for (size_t i = 0; i < COMMAND_COUNT; i++) {
		if (strcmp(name, commands[i].name) == 0) {
			return run_command(&commands[i], argc - 1, argv + 1);
		}
	}
	fprintf(stderr, "gpas-vmm: %s%s; see gpas-vmm --help\n",
		*name == '\0' ? "no command given" : "no such command: ", name);
	return STATUS_USAGE;
}
