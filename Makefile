# Mixtral inside SQLite: one engine in C. `make help` lists the targets.
#
# Variables:  CC, CFLAGS       the compiler and its optimisation (default: cc, -O2 -g)
#             MODEL            a GGUF file for the demos (default: the one that `make model` fetches)
#             PORT             of `make demo-nginx` (default: 8080)
#             PREFIX, DESTDIR  where `make install` puts things (default: /usr/local)
#             WERROR=1         warnings are errors
#             SAN=address,...  build with these sanitizers, into a folder of its own
#             FUZZ_SECONDS     for each target of `make fuzz` (default: 60)

MAKEFLAGS    += --no-print-directory
CFLAGS       ?= -O2 -g
PREFIX       ?= /usr/local
FUZZ_SECONDS ?= 60
comma        := ,
SAN_DIR      := $(subst $(comma),-,$(SAN))
BUILD        := build$(if $(SAN),/$(SAN_DIR))
OBJ          := $(BUILD)/obj
MACHINE      := $(firstword $(subst -, ,$(shell $(CC) -dumpmachine 2>/dev/null)))

# ---- Flags --------------------------------------------------------------------------------------------------------

# C11 with the GNU and Linux interfaces (futex, memfd, accept4, ...).
FLAGS := -std=c11 -D_GNU_SOURCE
FLAGS += -Wall -Wextra -Wshadow $(if $(WERROR),-Werror)
# Headers are named from core/; -iquote keeps core/error.h from hiding the system's <error.h>.
FLAGS += -iquote core
# The same objects go into the program and into shared libraries, which export nothing by accident.
FLAGS += -fPIC -fvisibility=hidden
# No multiply-add is fused behind our back: a result must not depend on how a loop was compiled ("Same answer").
FLAGS += -ffp-contract=off
# sqrtf and friends set no errno, so they are instructions instead of calls.
FLAGS += -fno-math-errno
FLAGS += -pthread
ifneq ($(SAN),)
FLAGS += -fsanitize=$(SAN) -fno-sanitize-recover=all -fno-omit-frame-pointer
endif
# -MMD -MP: each object leaves a list of the headers it was made from.
COMPILE = $(CC) $(FLAGS) $(CPPFLAGS) $(CFLAGS) -MMD -MP
LIBS   := -lsodium -ljansson -lpcre2-8 -pthread -lm

# An instruction set is one file with its own flags, chosen at run time: nothing is built for the machine at hand.
# -O3 vectorises and unrolls the inner loops of kernels; elsewhere it only makes code bigger. Sanitizers make of these big
# inlined functions minutes of compiling: -O1 for them, and none for fuzzing, which feeds files and frames, not kernels.
ifneq ($(findstring fuzzer,$(SAN)),)
KERNEL := -O1 -fno-sanitize=all
else
KERNEL := $(if $(SAN),-O1,-O3)
endif
# -Wno-psabi: vectors are passed only within a file, all of one ABI.
KERNEL += -Wno-psabi
AVX2   := -mavx2 -mfma -mf16c
AVX512 := $(AVX2) -mavx512f -mavx512bw -mavx512dq -mavx512vl
$(OBJ)/core/math/kernels_%.o:          KERNEL_FLAGS = $(KERNEL)
$(OBJ)/core/math/kernels_avx2.o:       KERNEL_FLAGS = $(KERNEL) $(AVX2)
$(OBJ)/core/math/kernels_avx512.o:     KERNEL_FLAGS = $(KERNEL) $(AVX512)
$(OBJ)/core/math/kernels_avx512vnni.o: KERNEL_FLAGS = $(KERNEL) $(AVX512) -mavx512vnni

# ---- What is built ------------------------------------------------------------------------------------------------

SOURCES := $(sort $(wildcard core/*.c core/*/*.c))
CLI     := $(filter core/cli/%,$(SOURCES))
CORE    := $(filter-out core/cli/%,$(SOURCES))
SQLITE  := $(sort $(wildcard sqlite_extension/*.c))
UNIT    := $(sort $(wildcard tests/*/test_*.c))
FUZZ    := $(sort $(wildcard tests/fuzz/fuzz_*.c))
ifeq ($(filter x86_64,$(MACHINE)),)
CORE := $(filter-out core/math/kernels_avx%,$(CORE))
endif
ifeq ($(filter aarch64,$(MACHINE)),)
CORE := $(filter-out core/math/kernels_neon%,$(CORE))
endif

objects = $(patsubst %.c,$(OBJ)/%.o,$(1))
LIBRARY := $(BUILD)/libmixtral.a
TOOLS   := $(sort $(wildcard tests/tools/*.c))
TESTS   := $(patsubst %.c,$(BUILD)/%,$(UNIT) $(TOOLS))
FUZZERS := $(patsubst tests/fuzz/%.c,$(BUILD)/%,$(FUZZ))

all: $(BUILD)/mixtral $(BUILD)/mixtral.so  ## the program build/mixtral and the SQLite extension build/mixtral.so

$(LIBRARY): $(call objects,$(CORE))
	@rm -f $@
	$(AR) rcs $@ $^

$(BUILD)/mixtral: $(call objects,$(CLI)) $(LIBRARY)
	$(CC) $(FLAGS) $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

# The entry point is the only symbol that leaves the library, and every symbol must be found now, not when a user
# loads it. nodelete: closing the last connection unloads an extension, which would pull the code from under the
# engine's threads.
$(BUILD)/mixtral.so: $(call objects,$(SQLITE)) $(LIBRARY) sqlite_extension/exports.map
	$(CC) $(FLAGS) $(CFLAGS) $(LDFLAGS) -shared -Wl,-z,nodelete $(if $(SAN),,-Wl$(comma)--no-undefined) \
	    -Wl,--version-script=sqlite_extension/exports.map -o $@ $(filter-out %.map,$^) $(LIBS)

$(OBJ)/%.o: %.c $(OBJ)/flags | $(OBJ)/headers
	@mkdir -p $(@D)
	$(COMPILE) $(KERNEL_FLAGS) -c -o $@ $<

# Other flags, other objects.
$(OBJ)/flags: FORCE
	@mkdir -p $(@D)
	@echo '$(COMPILE)' | cmp -s - $@ || echo '$(COMPILE)' > $@

# Says which Debian package brings a header that is missing, before the compiler says it once a file.
$(OBJ)/headers: tests/install.sh
	@mkdir -p $(@D)
	@CC='$(CC) $(CPPFLAGS)' tests/install.sh --headers
	@touch $@

# ---- Use ----------------------------------------------------------------------------------------------------------

# `make demo` and `make check` install what is missing first, and build after that.
SUBMAKE = $(MAKE) $(if $(filter -j%,$(MAKEFLAGS)),,-j$(shell nproc))

model:  ## fetch the default model if it is missing; prints its path as the last line
	@tests/fetch.sh model

demo:  ## install what is missing, build, fetch the model, and ask it questions in the sqlite3 shell
	@tests/install.sh demo
	@$(SUBMAKE) all
	@MODEL='$(MODEL)' tests/demo/run

pg:  ## install PostgreSQL if it is missing, and build the extension; `make -C pg_extension install` installs it
	@tests/install.sh demo pg
	@$(SUBMAKE) $(BUILD)/mixtral
	@$(MAKE) -C pg_extension

demo-pg: pg  ## the demo in psql, on a temporary PostgreSQL cluster
	@MODEL='$(MODEL)' tests/demo/run_pg

# nginx's own build, in a copy of the tree that Debian's nginx-dev brings, with the flags of its nginx: the module
# is for that version. Of the engine only the client's half is linked in.
NGINX_TREE   := /usr/share/nginx/src
NGINX_SOURCE := $(wildcard nginx_module/*)
NGINX_CLIENT := $(addprefix $(OBJ)/core/,server/client.o server/wire.o server/json_parse.o server/keys.o error.o)

nginx:  ## install nginx and its headers if they are missing, and build build/ngx_http_mixtral_module.so
	@tests/install.sh demo nginx
	@$(SUBMAKE) all $(BUILD)/ngx_http_mixtral_module.so

$(BUILD)/nginx/libclient.a: $(NGINX_CLIENT)
	@mkdir -p $(@D)
	@rm -f $@
	$(AR) rcs $@ $^

# The chat page, in one.
$(BUILD)/nginx/ngx_http_mixtral_page.h: $(wildcard nginx_module/chat/*)
	@mkdir -p $(@D)
	@nginx_module/chat/embed.sh > $@

$(BUILD)/nginx/objs/Makefile: nginx_module/config
	@mkdir -p $(BUILD)/nginx
	@ln -sfn $(NGINX_TREE)/auto $(BUILD)/nginx/auto
	@ln -sfn $(NGINX_TREE)/src $(BUILD)/nginx/src
	cd $(BUILD)/nginx && bash -c '. $(NGINX_TREE)/conf_flags && MIXTRAL_CLIENT=$(abspath $(BUILD))/nginx/libclient.a \
	    sh $(NGINX_TREE)/configure "$${NGX_CONF_FLAGS[@]}" --builddir=objs --with-cc="$(CC)" --with-cc-opt="$(CFLAGS)" \
	    --add-dynamic-module=$(CURDIR)/nginx_module' > $(abspath $(BUILD))/nginx/configure.log

$(BUILD)/ngx_http_mixtral_module.so: $(BUILD)/nginx/objs/Makefile $(NGINX_SOURCE) core/mx.h core/server/keys.h $(BUILD)/nginx/libclient.a \
        $(BUILD)/nginx/ngx_http_mixtral_page.h
	@rm -f $(BUILD)/nginx/objs/ngx_http_mixtral_module.so
	@$(MAKE) -C $(BUILD)/nginx -f objs/Makefile modules
	cp --remove-destination $(BUILD)/nginx/objs/ngx_http_mixtral_module.so $@ # a running nginx keeps the old one

demo-nginx: nginx  ## nginx on 127.0.0.1:8080 (PORT=...) with a chat page and the endpoints, until Ctrl-C
	@MODEL='$(MODEL)' PORT='$(PORT)' tests/demo/run_nginx

check:  ## install what is missing, build, and run every test
	@tests/install.sh demo check pg nginx page
	@$(SUBMAKE) all tests fuzzers $(BUILD)/ngx_http_mixtral_module.so
	@$(MAKE) -C pg_extension
	@BUILD='$(BUILD)' tests/run

check-asan:  ## the tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@tests/install.sh demo check
	@$(SUBMAKE) SAN=address,undefined all tests
	@BUILD=build/address-undefined SAN=address,undefined tests/run

check-tsan:  ## the tests under ThreadSanitizer
	@tests/install.sh demo check
	@$(SUBMAKE) SAN=thread all tests
	@BUILD=build/thread SAN=thread tests/run

fuzz:  ## run every fuzz target for FUZZ_SECONDS
	@tests/install.sh demo check
	@$(SUBMAKE) all fuzzers
	@tests/fuzz/run $(FUZZ_SECONDS)

soak:  ## the long tests: fuzz targets for 10 minutes each, 10,000 chats in one process
	@tests/install.sh demo check pg nginx
	@$(SUBMAKE) all fuzzers $(BUILD)/tests/tools/static_load $(BUILD)/ngx_http_mixtral_module.so
	@$(MAKE) -C pg_extension
	@tests/soak.sh

bench: all  ## measure speed on this machine
	@tests/bench/run

install: all  ## into $(DESTDIR)$(PREFIX): program, SQLite extension, library and its header, systemd units; nginx's module if built
	install -D -m 755 $(BUILD)/mixtral $(DESTDIR)$(PREFIX)/bin/mixtral
	install -D -m 755 $(BUILD)/mixtral.so $(DESTDIR)$(PREFIX)/lib/sqlite3/mixtral.so
	install -D -m 644 $(BUILD)/libmixtral.a $(DESTDIR)$(PREFIX)/lib/libmixtral.a
	install -D -m 644 core/mx.h $(DESTDIR)$(PREFIX)/include/mx.h
	install -D -m 644 core/cli/systemd/mixtral.socket $(DESTDIR)$(PREFIX)/lib/systemd/system/mixtral.socket
	sed 's|@PREFIX@|$(PREFIX)|' core/cli/systemd/mixtral.service > $(BUILD)/mixtral.service
	install -D -m 644 $(BUILD)/mixtral.service $(DESTDIR)$(PREFIX)/lib/systemd/system/mixtral.service
	@[ ! -f $(BUILD)/ngx_http_mixtral_module.so ] || $(MAKE) install-nginx

install-nginx: nginx  ## the module into $(DESTDIR)/usr/lib/nginx/modules, where Debian's nginx looks for it
	install -D -m 644 $(BUILD)/ngx_http_mixtral_module.so $(DESTDIR)/usr/lib/nginx/modules/ngx_http_mixtral_module.so

uninstall:  ## remove what install put there
	rm -f $(addprefix $(DESTDIR)$(PREFIX)/,bin/mixtral lib/sqlite3/mixtral.so lib/libmixtral.a include/mx.h \
	    lib/systemd/system/mixtral.socket lib/systemd/system/mixtral.service) \
	    $(DESTDIR)/usr/lib/nginx/modules/ngx_http_mixtral_module.so

clean:  ## remove everything that was built
	rm -rf build pg_extension/*.o pg_extension/*.d pg_extension/*.so

help:  ## this list
	@awk -F ':.*  ## ' '/^[a-z-]+:.*  ## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@awk '/^# Variables:/,/^$$/ {sub(/^# ?/, ""); print}' $(firstword $(MAKEFILE_LIST)) | sed '/^$$/d'

# ---- Tests --------------------------------------------------------------------------------------------------------

# cmocka programs and the tests' tools: tests/FOLDER/NAME.c becomes build/tests/FOLDER/NAME.
$(BUILD)/tests/%: $(OBJ)/tests/%.o $(LIBRARY)
	@mkdir -p $(@D)
	$(CC) $(FLAGS) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka -lsqlite3 $(LIBS)

# The AVX-512 kernels on a machine without AVX-512: compiled once more against a plain C model of the instructions.
MODELLED := $(OBJ)/tests/unit/modelled
ifneq ($(filter x86_64,$(MACHINE)),)
TESTS += $(BUILD)/tests/unit/test_kernels_avx512
endif
$(BUILD)/tests/unit/test_kernels_avx512: $(MODELLED)/test_kernels.o $(MODELLED)/kernels_avx512.o \
        $(MODELLED)/kernels_avx512vnni.o $(LIBRARY)
	@mkdir -p $(@D)
	$(CC) $(FLAGS) $(CFLAGS) $(LDFLAGS) -o $@ $^ -lcmocka $(LIBS)

$(MODELLED)/kernels_%.o: core/math/kernels_%.c $(OBJ)/flags
	@mkdir -p $(@D)
	$(COMPILE) -O1 -g0 -w -Wno-psabi $(AVX2) -DSIMDE_ENABLE_NATIVE_ALIASES -include tests/unit/model_of_avx512.h -c -o $@ $<

$(MODELLED)/test_kernels.o: tests/unit/test_kernels.c $(OBJ)/flags
	@mkdir -p $(@D)
	$(COMPILE) -DMX_TEST_MODEL_OF_AVX512 -c -o $@ $<

tests: $(TESTS)

# libFuzzer is clang's: the core is built once more, by clang, with its coverage and the sanitizers, into build/fuzz.
fuzzers:
	@$(MAKE) BUILD=build/fuzz CC=clang SAN=fuzzer-no-link,address,undefined fuzz-targets

fuzz-targets: $(FUZZERS)

$(BUILD)/fuzz_%: $(OBJ)/tests/fuzz/fuzz_%.o $(LIBRARY)
	$(CC) $(FLAGS) -fsanitize=fuzzer $(CFLAGS) $(LDFLAGS) -o $@ $^ $(LIBS)

.PHONY: all model demo demo-pg demo-nginx pg nginx check check-asan check-tsan fuzz soak bench install install-nginx uninstall clean help tests fuzzers \
        fuzz-targets FORCE
.SECONDARY:
.DELETE_ON_ERROR:

-include $(shell find $(OBJ) -name '*.d' 2>/dev/null)
