# ubd: what there is to make. `make` alone explains.
# Variables: PREFIX (where to install, /usr), DESTDIR (a root to install under), KERNEL (6.12 or 7.3),
#            GROUP (one test group of the lab), SCRATCH (where Swift builds, .build), TARGET and SECONDS (of make fuzz).
PREFIX  ?= /usr
DESTDIR ?=
KERNEL  ?= 7.3
GROUP   ?= all
SCRATCH ?= .build
SECONDS ?= 20
export UBD_SCRATCH := $(SCRATCH)

bin := .build/ubd/bin
# Swift leaves a folder in TMPDIR behind each time: not on the host, but here.
swift_build := mkdir -p $(SCRATCH)/tmp && TMPDIR=$(abspath $(SCRATCH))/tmp swift build --configuration release --disable-local-rpath
# The Swift runtime inside, every symbol bound at start (with the linker's default RELRO: no writable jump table), stripped.
hosted := --static-swift-stdlib -Xlinker -z -Xlinker now -Xlinker -s
# Everything inside, libc too, and position-independent: the worker runs in an empty root, and `ubd` is started for every command,
# so its start must be cheap. Packed relocations, for the same reason. gold cannot link that, lld can.
# Each set of flags has a build folder of its own: in one folder every build would begin anew.
packed := -Xlinker -z -Xlinker pack-relative-relocs
# What runs at a start lies side by side, so a start maps fewer pages (docs/building.md). Names that are gone are passed over.
ordered := -Xlinker --symbol-ordering-file=$(abspath scripts/startup-order.txt) -Xlinker --no-warn-symbol-ordering
with_symbols := --scratch-path $(SCRATCH)/worker -Xswiftc -DUBD_STATIC -Xswiftc -static-executable -Xswiftc -use-ld=lld \
	-Xswiftc -Xclang-linker -Xswiftc -static-pie $(packed) $(ordered) -Xlinker -z -Xlinker now
static := $(with_symbols) -Xlinker -s
sources := Package.swift Sources Tests Benchmarks

.PHONY: help dependencies build static-programs startup-order hosted-programs poison-worker crash-worker failing-broker newest-libc bare-worker escape fuzzers fuzz install uninstall deb deb-alone lab-packages bench bench-check \
	test unit lab-test soak lint format demo lab clean

help:
	@echo 'ubd: block devices served from userspace, for users who are not root.'
	@echo
	@echo '  make demo                  see it work: boots a Linux 7.3 in QEMU and uses it there as user alice'
	@echo '  make lab [KERNEL=6.12]     a shell in such a machine, with ubd installed and its broker running'
	@echo '  make build                 ubd, ubd-broker, ubd-worker, ubd-nbd and ubd-crypt, in $(bin)'
	@echo '  make install               installs them under PREFIX=$(PREFIX) (DESTDIR=... for packages)'
	@echo '  make deb                   Debian package: .build/deb/ubd_VERSION_ARCH.deb'
	@echo '  make uninstall             removes them again, but for /etc/ubd'
	@echo '  make test                  everything: lint, unit tests, binaries, and devices on kernels 6.12 and 7.3'
	@echo '  make unit                  only the unit tests'
	@echo '  make lab-test [KERNEL=all] [GROUP=name]   only the tests on real kernels; Tests/lab/run --help tells more'
	@echo '  make fuzz [TARGET=name] [SECONDS=n]       feeds every parser what nobody would write, for 10 s each'
	@echo '  make soak                  the full counts of kills and cycles, for an hour or two: writes docs/proof.md'
	@echo '  make bench                 what a request costs, in instructions, beside others: writes docs/performance.md'
	@echo '  make bench-check           compares the quickest points with Benchmarks/system/thresholds'
	@echo '  make lint, make format     the source style: check it, put it right'
	@echo '  make clean                 removes what was built; the cache of kernels stays ($${UBD_CACHE:-~/.cache/ubd})'
	@echo
	@echo 'What a host needs for that, scripts/install-dependencies installs (Debian, as root) or names.'

dependencies:
	@scripts/install-dependencies test

# Two build folders, so two builds at once: each is one long thread for most of its time.
build:
	@scripts/install-dependencies build
	@$(MAKE) --no-print-directory --jobs=2 static-programs hosted-programs
	@mkdir -p $(bin)
	@cp $(SCRATCH)/worker/release/ubd $(SCRATCH)/release/ubd-broker $(SCRATCH)/release/ubd-nbd $(SCRATCH)/release/ubd-crypt $(SCRATCH)/worker/release/ubd-worker $(bin)/

static-programs:
	$(swift_build) $(static) --product ubd
	$(swift_build) $(static) --product ubd-worker

# Writes that list anew, after changes of what `ubd add` and `ubd del` do.
startup-order:
	@scripts/install-dependencies test
	$(swift_build) $(subst $(SCRATCH)/worker,$(SCRATCH)/symbols,$(with_symbols)) --product ubd
	scripts/startup-order $(SCRATCH)/symbols/release/ubd

hosted-programs:
	$(swift_build) --scratch-path $(SCRATCH) $(hosted) --product ubd-broker
	$(swift_build) --scratch-path $(SCRATCH) $(hosted) --product ubd-nbd
	$(swift_build) --scratch-path $(SCRATCH) $(hosted) --product ubd-crypt

# install-files MODE, FOLDER UNDER DESTDIR, FILES: fails when there are none, instead of installing half of ubd.
define install-files
	@ls $(3) >/dev/null 2>&1 || { echo 'make install: no $(3) in this source tree; is the checkout complete?' >&2; exit 1; }
	install -D -m $(1) -t '$(DESTDIR)$(2)' $(3)
endef

# The administrator's own file: what was changed in it stays, and the new one lies beside it.
define install-access-policy
	@new=policy/access.policy old='$(DESTDIR)/etc/ubd/access.policy'; \
	if [ -e "$$old" ] && ! cmp -s "$$new" "$$old"; then \
		install -m 0644 "$$new" "$$old.new"; \
		echo "make install: kept $$old, which is not the one of this version; that is $$old.new"; \
	else install -D -m 0644 "$$new" "$$old"; fi
endef

# Completions of the options, where the three shells look. $(1): the shell, $(2): file under PREFIX.
define install-completion
	@mkdir -p '$(DESTDIR)$(PREFIX)/$(dir $(2))'
	$(bin)/ubd --generate-completion-script $(1) | sed '1{/^#!/d}' >'$(DESTDIR)$(PREFIX)/$(2)'
	@chmod 0644 '$(DESTDIR)$(PREFIX)/$(2)'
endef

# Not part of ubd: a worker that fills its buffers before each read, so that the lab sees what nobody has filled.
poison-worker:
	$(swift_build) $(subst $(SCRATCH)/worker,$(SCRATCH)/poison,$(static)) -Xswiftc -DPOISONED_BUFFERS --product ubd-worker
	@mkdir -p .build/lab
	@cp $(SCRATCH)/poison/release/ubd-worker .build/lab/poison-worker

# Not part of ubd: what the lab starts in a worker's place.
escape:
	$(swift_build) $(static) --product ubd-escape
	@mkdir -p .build/lab
	@cp $(SCRATCH)/worker/release/ubd-escape .build/lab/

# Not part of ubd either: the worker, which breaks when a magic block is read (Engine/TestCrash.swift).
crash-worker:
	$(swift_build) --scratch-path $(SCRATCH)/crash $(filter-out --scratch-path $(SCRATCH)/worker,$(static)) \
		-Xswiftc -DUBD_TEST_CRASH --product ubd-worker
	@mkdir -p .build/lab
	@cp $(SCRATCH)/crash/release/ubd-worker .build/lab/ubd-crash-worker

# Nor this: a broker whose control commands and messages fail when the lab says so (Kernel/TestFailures.swift).
failing-broker:
	$(swift_build) --scratch-path $(SCRATCH)/failing $(hosted) -Xswiftc -DUBD_TEST_FAILURES --product ubd-broker
	@mkdir -p .build/lab
	@cp $(SCRATCH)/failing/release/ubd-broker .build/lab/ubd-failing-broker

# Nor this: the worker, linked anew with the newest C library that Debian has, and that library for the broker. The objects are
# those of `make build`: only what a C library does at a program's start differs.
objects := $(abspath $(SCRATCH))/worker/x86_64-unknown-linux-gnu/release
newest-libc:
	$(swift_build) $(static) --product ubd-worker
	@mkdir -p .build/lab/newest-libc
	library=$$(Tests/lab/images/newest-libc | tail -n 1) && \
	swiftc -o .build/lab/newest-libc/ubd-worker -module-name ubd_worker -emit-executable -L $(objects) -L "$$library/static" \
		-Xclang-linker -B"$$library/static" -Xlinker --gc-sections -Xlinker --defsym -Xlinker main=ubd_worker_main \
		@$(objects)/ubd-worker.product/Objects.LinkFileList -static-executable -use-ld=lld -Xclang-linker -static-pie \
		$(packed) -Xlinker -z -Xlinker now -Xlinker -s && \
	cp "$$library"/shared/* "$$library"/version .build/lab/newest-libc/

install:
	@test -x $(bin)/ubd -a -x $(bin)/ubd-broker -a -x $(bin)/ubd-worker -a -x $(bin)/ubd-nbd -a -x $(bin)/ubd-crypt || \
		{ echo 'make install: nothing built; run: make build' >&2; exit 1; }
	$(call install-files,0755,$(PREFIX)/bin,$(bin)/ubd)
	$(call install-files,0755,$(PREFIX)/libexec/ubd,$(bin)/ubd-broker)
	$(call install-files,0755,$(PREFIX)/libexec/ubd,$(bin)/ubd-nbd)
	$(call install-files,0755,$(PREFIX)/libexec/ubd,$(bin)/ubd-crypt)
	$(call install-files,0711,$(PREFIX)/libexec/ubd,$(bin)/ubd-worker)
	$(call install-files,0755,$(PREFIX)/libexec/ubd,policy/shutdown/ubd-shutdown)
	$(call install-files,0755,$(PREFIX)/libexec/ubd,policy/devices/ubd-device)
	$(call install-files,0755,$(PREFIX)/libexec/ubd,policy/store/ubd-descriptor-store)
	$(install-access-policy)
	$(call install-files,0644,$(PREFIX)/share/ubd/policy/seccomp,policy/seccomp/*.policy)
	$(call install-files,0644,$(PREFIX)/share/ubd/policy/rings,policy/rings/*.ring)
	$(call install-files,0644,$(PREFIX)/lib/udev/rules.d,policy/udev/*.rules)
	$(call install-files,0644,$(PREFIX)/lib/systemd/system,policy/systemd/*.service policy/systemd/*.socket policy/systemd/*.target)
	$(call install-files,0644,$(PREFIX)/lib/systemd/user,policy/systemd-user/*.service policy/systemd-user/*.socket)
	@$(if $(filter-out /usr,$(PREFIX)),sed -i \
		's|^ExecStart=/usr/libexec/ubd/ubd-broker|& --worker $(PREFIX)/libexec/ubd/ubd-worker --policy-dir $(PREFIX)/share/ubd/policy|; s|^ExecStart=/usr/|ExecStart=$(PREFIX)/|' \
		'$(DESTDIR)$(PREFIX)/lib/systemd/system/ubd-broker.service' && sed -i 's|^ExecStop=/usr/|ExecStop=$(PREFIX)/|' \
		'$(DESTDIR)$(PREFIX)/lib/systemd/system/ubd-devices.service' && sed -i 's|^\(Exec[A-Za-z]*=\)/usr/|\1$(PREFIX)/|' \
		'$(DESTDIR)$(PREFIX)/lib/systemd/system/ubd-device@.service' '$(DESTDIR)$(PREFIX)'/lib/systemd/user/ubd*.service)
	$(call install-files,0644,$(PREFIX)/lib/sysusers.d,policy/sysusers.d/*.conf)
	$(call install-files,0644,$(PREFIX)/lib/tmpfiles.d,policy/tmpfiles.d/*.conf)
	$(call install-files,0644,$(PREFIX)/lib/modules-load.d,policy/modules-load.d/*.conf)
	$(call install-files,0644,$(PREFIX)/share/doc/ubd/examples,policy/sysctl.d/*.example)
	$(call install-files,0644,$(PREFIX)/share/man/man1,docs/man/*.1)
	$(call install-files,0644,$(PREFIX)/share/man/man5,docs/man/*.5)
	$(call install-files,0644,$(PREFIX)/share/man/man7,docs/man/*.7)
	$(call install-files,0644,$(PREFIX)/share/man/man8,docs/man/*.8)
	$(call install-completion,bash,share/bash-completion/completions/ubd)
	$(call install-completion,zsh,share/zsh/vendor-completions/_ubd)
	$(call install-completion,fish,share/fish/vendor_completions.d/ubd.fish)

# The changelog's version is ubd's (the check `packages` compares them), and its date is that of all files.
deb: build
	@scripts/install-dependencies deb
	@mkdir -p .build/deb
	@flock .build/deb/lock $(MAKE) --no-print-directory deb-alone
	@ls .build/deb/*.deb
# Two at a time would write into one debian/ubd.
deb-alone:
	@rm -rf .build/deb/new && mkdir .build/deb/new
	@UBD_BUILT=1 DEB_FOLDER=$(abspath .build/deb/new) debian/rules clean binary >.build/deb/log 2>&1 || { tail -n 20 .build/deb/log >&2; exit 1; }
	@debian/rules clean >/dev/null && rm -f .build/deb/*.deb && mv .build/deb/new/*.deb .build/deb/

# The package, and the same one as the next version, for group `packages` of the lab: not compressed, since unpacking is slow
# there.
repack = dpkg-deb --root-owner-group -Znone -b .build/lab/package .build/lab/$(1).deb >/dev/null
lab-packages: deb
	@mkdir -p .build/lab && rm -rf .build/lab/package && dpkg-deb -R .build/deb/ubd_*.deb .build/lab/package && $(call repack,ubd) && \
	sed -i 's/^Version: .*/&+next/' .build/lab/package/DEBIAN/control && $(call repack,ubd-next) && rm -rf .build/lab/package

# What `install` would install, but for /etc.
uninstall:
	@new=$$(mktemp -d) && trap 'rm -rf "$$new"' EXIT && $(MAKE) --no-print-directory install DESTDIR="$$new" >/dev/null && \
	cd "$$new" && find . -type f ! -path './etc/*' -printf '%P\n' | while read -r file; do rm -f '$(DESTDIR)'/"$$file"; done
	@rm -f '$(DESTDIR)$(PREFIX)/lib/systemd/system/ubd-broker.service.d/50-descriptor-store.conf'
	@rmdir '$(DESTDIR)$(PREFIX)/lib/systemd/system/ubd-broker.service.d' 2>/dev/null || true
	@for folder in libexec/ubd share/ubd/policy/seccomp share/ubd/policy/rings share/ubd/policy share/ubd \
		share/doc/ubd/examples share/doc/ubd; do rmdir '$(DESTDIR)$(PREFIX)'/$$folder 2>/dev/null || true; done
	@echo 'make uninstall: done; /etc/ubd is kept'

# Not part of ubd: the worker without its walls, to measure what they cost.
bare-worker:
	$(swift_build) $(static) --product ubd-bare-worker
	@mkdir -p .build/bench
	@cp $(SCRATCH)/worker/release/ubd-bare-worker .build/bench/

bench: dependencies
	@Benchmarks/system/bench

bench-check: dependencies
	@Benchmarks/system/bench --check

test:
	@Tests/run

unit: dependencies
	@Tests/unit

lab-test: dependencies
	@Tests/lab/run --kernel $(if $(filter command line environment,$(origin KERNEL)),$(KERNEL),all) --group $(GROUP)

soak: dependencies
	@UBD_FULL=1 Tests/checks/apt-install
	@Tests/lab/soak

# Not part of ubd: the fuzzers (Tests/fuzz), everything in them watched by libFuzzer and AddressSanitizer. gold stumbles over
# the sanitizer's symbols.
fuzzers:
	export UBD_FUZZ=1; $(swift_build) --scratch-path $(SCRATCH)/fuzz -Xswiftc -sanitize=fuzzer,address \
		-Xswiftc -enable-testing -Xswiftc -use-ld=lld --product ubd-fuzz
	@mkdir -p .build/fuzz
	@install $(SCRATCH)/fuzz/release/ubd-fuzz .build/fuzz/

fuzz: dependencies
	@Tests/fuzz/run --seconds $(SECONDS) $(if $(TARGET),--target $(TARGET))

lint:
	swift format lint --strict --recursive $(sources)

format:
	swift format --in-place --recursive $(sources)

demo: dependencies
	@Tests/lab/demo

lab: dependencies
	@Tests/lab/shell $(KERNEL)

clean:
	rm -rf .build
