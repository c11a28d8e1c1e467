/* Unfolding a graph into steps. A node that is a graph becomes two steps without content, around the steps of the graph
 * inside. */
#include <stdlib.h>

#include "exec.h"

static size_t new_step(Steps *steps, CUgraphNode node) {
    steps->items = realloc(steps->items, (steps->n + 1) * sizeof *steps->items);
    if (!steps->items)
        abort();
    steps->items[steps->n] = (Step){.node = node, .content = {.type = CU_GRAPH_NODE_TYPE_EMPTY}};
    return steps->n++;
}

static void comes_after(Step *step, size_t other) {
    step->after = realloc(step->after, (step->n_after + 1) * sizeof *step->after);
    if (!step->after)
        abort();
    step->after[step->n_after++] = other;
}

static size_t number_of(const Graph *graph, const Node *node) {
    size_t i = 0;
    while (graph->nodes.items[i] != node)
        i++;
    return i;
}

/* Adds the steps of a graph behind step `before` (-1: none); returns the number of a step that comes after all of them.
 */
static size_t unfold(Steps *steps, const Graph *graph, ptrdiff_t before, CUgraphNode owner) {
    size_t n = graph->nodes.n;
    size_t *first = claim(n * sizeof *first), *last = claim(n * sizeof *last);
    for (size_t i = 0; i < n; i++) {
        const Node *node = graph->nodes.items[i];
        first[i] = last[i] = new_step(steps, node->object.handle);
        if (before >= 0)
            comes_after(&steps->items[first[i]], (size_t)before);
        if (node->content.child)
            last[i] = unfold(steps, node->content.child, (ptrdiff_t)first[i], node->object.handle);
        else
            steps->items[first[i]].content = content_copy(&node->content);
    }
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < graph->nodes.items[i]->after.n; j++)
            comes_after(&steps->items[first[i]], last[number_of(graph, graph->nodes.items[i]->after.items[j])]);
    size_t end = new_step(steps, owner);
    if (before >= 0)
        comes_after(&steps->items[end], (size_t)before);
    for (size_t i = 0; i < n; i++)
        comes_after(&steps->items[end], last[i]);
    free(first);
    free(last);
    return end;
}

Steps steps_of(const Graph *graph) {
    Steps steps = {0};
    unfold(&steps, graph, -1, NULL);
    return steps;
}

void steps_end(Steps *steps) {
    for (size_t i = 0; i < steps->n; i++) {
        content_release(&steps->items[i].content);
        free(steps->items[i].after);
    }
    free(steps->items);
    *steps = (Steps){0};
}
