/* Lua: runs the program that is its first argument, or stdin. Lua's errors are longjmp, which needs exceptions. */
#include "lauxlib.h"
#include "lua.h"
#include "lualib.h"
#include <stdio.h>

/* The tag that longjmp throws: compilers since LLVM 22 leave it to the C library, and zig 0.17's has none yet. */
__asm__(".globl __c_longjmp\n.tagtype __c_longjmp i32\n__c_longjmp:\n");

int main(int argc, char **argv) {
    lua_State *lua = luaL_newstate();
    if (!lua) return 9;
    luaL_openlibs(lua);
    int status = argc > 1 ? luaL_loadstring(lua, argv[1]) : luaL_loadfile(lua, NULL);
    if (status == LUA_OK) status = lua_pcall(lua, 0, 0, 0);
    if (status != LUA_OK) fprintf(stderr, "lua: %s\n", lua_tostring(lua, -1));
    lua_close(lua);
    return status == LUA_OK ? 0 : 1;
}
