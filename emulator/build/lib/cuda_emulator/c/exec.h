/* Executable graphs and their launches. */
#ifndef EMULATOR_EXEC_H
#define EMULATOR_EXEC_H

#include "graph.h"

/* One node of a graph, or of a graph inside it, as it will run. */
typedef struct Step {
    CUgraphNode node; /* which it came from */
    Content content;
    size_t *after; /* numbers of steps */
    size_t n_after;
    bool disabled;
} Step;

typedef struct Steps {
    Step *items;
    size_t n;
} Steps;

/* The steps of a graph, graphs inside it unfolded. */
Steps steps_of(const Graph *graph);
void steps_end(Steps *steps);

typedef struct Exec {
    Object object;
    Steps steps;
    cuuint64_t flags;
    Record *last; /* of its latest launch: launches of one executable graph do not overlap */
    Graph *users; /* an empty graph that holds the user objects */
} Exec;

CUresult exec_set(CUgraphExec exec, CUgraphNode node, CUgraphNodeParams *description);

/* A launch: its own copy of the steps, since the executable graph may be changed or destroyed while it runs. */
typedef struct GraphRun GraphRun;

CUresult graph_run_new(const Exec *exec, const Stream *stream, GraphRun **run);
CUresult graph_run(GraphRun *run);
void graph_run_end(GraphRun *run);

#endif
