/* QuickJS: runs the program that is its first argument; print() writes a line, and a Promise's jobs are run. */
#include "quickjs.h"
#include <stdio.h>
#include <string.h>

static JSValue print(JSContext *js, JSValueConst self, int count, JSValueConst *values) {
    (void)self;
    for (int i = 0; i < count; i++) {
        const char *text = JS_ToCString(js, values[i]);
        if (!text) return JS_EXCEPTION;
        printf(i ? " %s" : "%s", text);
        JS_FreeCString(js, text);
    }
    putchar('\n');
    return JS_UNDEFINED;
}

static int failed(JSContext *js) {
    JSValue exception = JS_GetException(js);
    const char *text = JS_ToCString(js, exception);
    fprintf(stderr, "quickjs: %s\n", text ? text : "an exception");
    JS_FreeCString(js, text);
    JS_FreeValue(js, exception);
    return 1;
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    JSRuntime *runtime = JS_NewRuntime();
    JSContext *js = JS_NewContext(runtime), *next;
    JSValue global = JS_GetGlobalObject(js);
    JS_SetPropertyStr(js, global, "print", JS_NewCFunction(js, print, "print", 1));
    JS_FreeValue(js, global);
    JSValue value = JS_Eval(js, argv[1], strlen(argv[1]), "argument", JS_EVAL_TYPE_GLOBAL);
    int status = JS_IsException(value) ? failed(js) : 0;
    JS_FreeValue(js, value);
    while (!status && JS_IsJobPending(runtime))
        if (JS_ExecutePendingJob(runtime, &next) < 0) status = failed(next);
    JS_FreeContext(js);
    JS_FreeRuntime(runtime);
    return status;
}
