/* SPDX-License-Identifier: MIT */
/*
 * A model of a space attached to KVM: a flat array with one entry a page.
 *
 * Each step makes one random call, predicts what it returns and what it
 * leaves, and compares regions, translations and the content of memory with
 * the array. What the environment adds (slots, failures) comes in through
 * hooks, so the same model runs on the fake KVM and on a real one.
 */
#ifndef GPAS_TESTS_KVM_MODEL_H
#define GPAS_TESTS_KVM_MODEL_H

#include <gpas/space.h>

#define MODEL_PAGES 48
#define MODEL_STEPS 400 /* the longest run, for the trace */

struct model_page {
	unsigned backing; /* which map call made it; 0: unmapped */
	unsigned prot;
	bool device;
	bool lazy;
	bool present;
	uint64_t granule;
	uint64_t host;	/* of this page, also while absent */
	uint64_t token; /* written by the model once present; 0: not yet */
};

struct model_state {
	struct model_page pages[MODEL_PAGES];
};

struct model;

struct model_hooks {
	/* Called before each step. May be NULL. */
	void (*begin)(void *ctx, struct model *model);
	/* The call failed with @err or (0) succeeded, although the model says
	 * 0 and would then hold @after. Returns whether that is right. */
	bool (*accepts)(void *ctx, struct model *model, int err,
			const struct model_state *after);
	/* Called after each step, outside of groups. NULL, or what is wrong. */
	const char *(*check)(void *ctx, struct model *model);
	void *ctx;
};

struct model {
	struct gpas *space;
	uint64_t base; /* GPA of page 0 */
	struct model_hooks hooks;
	bool scarce; /* there may be too few slots */
	uint64_t random;
	uint8_t *memory; /* MODEL_PAGES pages for linear mappings */
	unsigned backings;
	uint64_t tokens;
	bool grouped;
	struct model_state now;
	struct model_state before_group;
	/* For the report. */
	uint64_t seed;
	unsigned steps;
	char trace[MODEL_STEPS][96];
	char wrong[160];
};

/* A model of the empty @space from @base on. */
void model_init(struct model *model, struct gpas *space, uint64_t base,
		uint64_t seed, const struct model_hooks *hooks);
void model_fini(struct model *model);

/* One random call. False: model->wrong says why not. */
bool model_step(struct model *model);

/* Ends a group, if one is open, by aborting it. */
bool model_close(struct model *model);

/* Prints seed, trace and what is wrong. */
void model_report(const struct model *model);

uint64_t model_random(struct model *model, uint64_t below);

#endif
