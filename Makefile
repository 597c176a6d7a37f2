# `make run` and `make test` set up what they need; `make help` lists the rest.
DESTDIR ?=
PREFIX ?= /usr
SBINDIR ?= /sbin
LIB = $(PREFIX)/lib/stack
VENV = .venv
PYTHON ?= $(VENV)/bin/python
# The Python of the target: whose byte code is compiled, and whose site-packages gets the path to our modules.
TARGET_PYTHON ?= /usr/bin/python3
INIT_PYTHON ?= /usr/bin/python3
SITEDIR ?= $(shell $(TARGET_PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
PACKAGES = base tables onboard pid1 services network updates uplink prompt profiles
NAMES = bus sv settings _log # what every Python of the board can import; see base/on_path.py
SECONDS ?=
PROFILE ?=
MOTHERSHIP ?=
MACHINE ?= x86_64
MACHINES = x86_64 virt-arm64 raspi3b

.PHONY: help run prompt boot test test-qemu test-arm test-pythons chaos fleet lint bench bench-boot microvm image install install-board uninstall-board
.PHONY: fleet-updates update-cuts soak setup clean install-files docs demo mothership pins push mutants update-key bundle update

help:
	@echo "make run [SECONDS=n] [PROFILE=FILE] [MOTHERSHIP=HOST:PORT] [OPTIONS='stack.debug ...']   boot the board in namespaces"
	@echo "make demo [SECONDS=n]                 three such boards, their mothership and its map, on this machine"
	@echo "make mothership                       what a mothership needs, in an environment of its own: build/mothership"
	@echo "make prompt                           the prompt of a board that runs in another terminal"
	@echo "make boot [MACHINE=x86_64|virt-arm64|raspi3b] [PROFILE=FILE] [OPTIONS=...]   a real kernel, in QEMU"
	@echo "make microvm [RUN='PROGRAM ...'] [CONFIG=FILE] [OPTIONS=...]   a microVM with one program, in QEMU"
	@echo "make test-qemu                        the tests on real kernels"
	@echo "make test-arm [ARCH=arm64|armhf]      the tests on ARM's Debian, under qemu-user"
	@echo "make test-pythons [PYTHONS='3.12 3.13']   the tests without real kernels, under each Python that is here"
	@echo "make test | lint | bench              tests, ruff and mypy, figures beside the peers"
	@echo "make soak [STARTS=n] [CONNECTIONS=n] [RELOADS=n] [UPGRADES=n]   again and again, while services die: nothing is lost or left"
	@echo "make chaos [HOURS=n] [SEED=n]         board, broker and receiver killed, cut, slowed, filled up: nothing is lost"
	@echo "make bench-boot [ROUNDS=n] [MACHINE=...]   boots beside busybox init and systemd, in QEMU"
	@echo "make fleet [BOARDS='200 2000'] [SECONDS=n] [RATE=n] [PERIOD=n] [BROKER=mosquitto|nats|both]   many boards, one mothership"
	@echo "make fleet-updates [BOARDS=n] [SEED=n]   a bad release and a good one in waves, over simulated boards"
	@echo "make update-cuts [CUTS=n] [SEED=n]    power cuts while a board in QEMU updates itself again and again"
	@echo "make image BOARD=name BUILDROOT=path   a card for a board, by a checkout of Buildroot 2026.05.1"
	@echo "make mutants [MODULES='sv.py ...'] [MUTANTS=n] [SEED=n]   which small mistakes the pure tests notice"
	@echo "make push BOARD=root@host             this tree's modules on a board, until its next boot or keep()"
	@echo "make update-key                       the key that signs updates, in build/update; the next image knows it"
	@echo "make bundle BOARD=name                an update of what make image has built, signed"
	@echo "make update BOARD=root@host BUNDLE=FILE   ... into the slot of a board that does not run"
	@echo "make install DESTDIR= PREFIX=         what an image needs"
	@echo "make install-board | uninstall-board  on this Raspberry Pi OS or Debian, beside its systemd"
	@echo "make docs                             the documentation as a site, in build/site"

run: setup
	@$(PYTHON) laptop/launcher.py --live $(if $(SECONDS),--seconds $(SECONDS)) $(if $(PROFILE),--profile "$(PROFILE)") $(if $(MOTHERSHIP),--mothership "$(MOTHERSHIP)") -- $(OPTIONS)

demo: setup
	@$(PYTHON) lab/demo.py $(if $(SECONDS),--seconds $(SECONDS))

mothership:
	@VENV=build/mothership PROGRAMS= ./setup.sh requirements-mothership.txt
	@echo "mothership: it is set up. Beside any MQTT broker:"
	@echo "    build/mothership/bin/python mothership receive HOST:PORT DATABASE"
	@echo "    build/mothership/bin/python mothership boards DATABASE"
	@echo "    build/mothership/bin/python mothership --help"

prompt:
	@$(PYTHON) laptop/enter.py

setup:
	@./setup.sh $(NEEDS)
	@rm -rf build/root/stack/lib/stack
	@$(MAKE) -s install TOLERANT=yes DESTDIR="$(CURDIR)/build/root" PREFIX=/stack SBINDIR=/stack/sbin SITEDIR= TARGET_PYTHON=$(PYTHON) INIT_PYTHON=/python/bin/python

CHAOS = tc:iproute2 faketime:faketime
SERVER = pg_ctlcluster:postgresql chromium:chromium openssl:openssl shellcheck:shellcheck
SSH = dropbear:dropbear-bin ssh:openssh-client rsync:rsync /usr/lib/openssh/sftp-server:openssh-sftp-server
UPDATE = swupdate:swupdate openssl:openssl cpio:cpio
CARD = genimage:genimage mcopy:mtools mkfs.vfat:dosfstools mke2fs:e2fsprogs mksquashfs:squashfs-tools sfdisk:fdisk
test: NEEDS = requirements-dev.txt requirements-fleet.txt requirements-docs.txt
test: export PROGRAMS = $(CHAOS) $(SERVER) $(CARD) $(UPDATE) $(SSH) busybox:busybox ip:iproute2 fusermount3:fuse3 wpa_supplicant:wpasupplicant
test: setup
	@./test.sh $(TESTS)

PYTHONS ?= 3.11 3.12 3.13 3.14
test-pythons: export PROGRAMS = cpio:cpio
test-pythons: setup
	@./test_pythons.sh $(PYTHONS) -- $(TESTS)

# After a version in requirements*.txt has been changed: their hashes again. It takes uv (pip install uv).
pins:
	@$(PYTHON) lab/pins.py

lint: NEEDS = requirements-dev.txt
lint: setup
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy .

# An ordinary user unpacks roots in a user namespace; its files belong to the ids of /etc/subuid.
AS_ROOT = $(if $(filter-out 0,$(shell id -u)),unshare --map-root-user --map-auto)
LAB = mmdebstrap:mmdebstrap cpio:cpio ssh:openssh-client modprobe:kmod mke2fs:e2fsprogs gzip:gzip newuidmap:uidmap sfdisk:fdisk mksquashfs:squashfs-tools mkfs.vfat:dosfstools mcopy:mtools
boot test-qemu: NEEDS = requirements-dev.txt
ARM = qemu-system-aarch64:qemu-system-arm qemu-aarch64-static:qemu-user-static
boot: export PROGRAMS = $(LAB) $(if $(filter x86_64,$(MACHINE)),qemu-system-x86_64:qemu-system-x86,$(ARM))
boot: setup
	@$(AS_ROOT) $(PYTHON) lab/boot.py $(if $(PROFILE),--profile "$(PROFILE)") $(MACHINE) -- $(OPTIONS)

RUN ?=
CONFIG ?=
microvm: NEEDS = requirements-dev.txt
microvm: export PROGRAMS = $(LAB) qemu-system-x86_64:qemu-system-x86
microvm: setup
	@$(AS_ROOT) $(PYTHON) lab/microvm.py $(if $(RUN),--run "$(RUN)") $(if $(CONFIG),--config "$(CONFIG)") -- $(OPTIONS)

# The longest first: a worker takes a file.
QEMU_TESTS = $(patsubst %,tests/qemu_%.py,wifi powercuts watchdog exits cgroup security storage install bootfiles board ssh hotplug uplink teardown outbox raspi clock card microvm)
test-qemu: export STACK_PATIENCE ?= 3 # without KVM, and beside others; a wait that ends early costs nothing
test-qemu: export PROGRAMS = $(LAB) $(CARD) $(SSH) qemu-system-x86_64:qemu-system-x86 $(ARM)
test-qemu: setup
	@$(AS_ROOT) $(PYTHON) lab/image.py $(MACHINES)
	@$(AS_ROOT) $(PYTHON) -m pytest -q -rs -p no:cacheprovider -n 2 --dist loadfile --no-loadscope-reorder --timeout 400 $(or $(TESTS),$(QEMU_TESTS))

update-cuts: NEEDS = requirements-dev.txt
update-cuts: export PROGRAMS = $(LAB) $(CARD) $(UPDATE) qemu-system-x86_64:qemu-system-x86
update-cuts: setup
	@$(AS_ROOT) env STACK_CUTS=$(or $(CUTS),30) $(if $(SEED),STACK_SEED=$(SEED)) $(PYTHON) -m pytest -q -s -p no:cacheprovider tests/qemu_update_cuts.py

ARCH ?= arm64 armhf
test-arm: NEEDS = requirements-dev.txt
test-arm: export PROGRAMS = mmdebstrap:mmdebstrap qemu-aarch64-static:qemu-user-static
test-arm: setup
	@status=0; for arch in $(ARCH); do $(PYTHON) lab/arm.py $$arch $(TESTS) || status=1; done; exit $$status

soak: NEEDS = requirements-dev.txt
soak: setup
	@STACK_SOAK="$(or $(STARTS),20000) $(or $(CONNECTIONS),5000) $(or $(RELOADS),500) $(or $(UPGRADES),200)" $(PYTHON) -m pytest -q -s -p no:cacheprovider tests/test_soak.py

chaos: NEEDS = requirements-dev.txt
chaos: export PROGRAMS = ip:iproute2 $(CHAOS)
chaos: setup
	@$(PYTHON) lab/chaos.py $(if $(HOURS),--hours $(HOURS)) $(if $(SEED),--seed $(SEED))

bench: NEEDS = requirements-dev.txt requirements-bench.txt
bench: export PROGRAMS = busybox:busybox runsvdir:runit s6-svscan:s6 cc:gcc ld:libc6-dev
bench: setup
	@$(PYTHON) bench/bench.py $(BENCH)
	@$(PYTHON) bench/idle.py

bench-boot: NEEDS = requirements-dev.txt
bench-boot: export PROGRAMS = $(LAB) qemu-system-x86_64:qemu-system-x86 $(ARM)
bench-boot: setup
	@$(PYTHON) lab/bench_boot.py $(if $(filter command line,$(origin MACHINE)),$(MACHINE)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(BENCH)
	@$(AS_ROOT) $(PYTHON) lab/bench_microvm.py $(if $(ROUNDS),--rounds $(ROUNDS))

BOARDS ?= 2000
fleet: NEEDS = requirements.txt requirements-fleet.txt
fleet: setup
	@$(PYTHON) lab/fleet.py $(BOARDS) $(foreach name,SECONDS RATE PERIOD BROKER,$(if $($(name)),--$(shell echo $(name) | tr A-Z a-z) $($(name)))) $(FLEET)

fleet-updates: NEEDS = requirements.txt requirements-fleet.txt
fleet-updates: export PROGRAMS = $(UPDATE) $(CARD)
fleet-updates: setup
	@$(PYTHON) lab/fleet_updates.py $(if $(filter command line,$(origin BOARDS)),$(BOARDS)) $(if $(SEED),--seed $(SEED))

BOARD ?=
BUILDROOT ?=
CARD_BOARDS = $(patsubst buildroot/configs/stack_%_defconfig,%,$(sort $(wildcard buildroot/configs/*)))
CARDS = $(CURDIR)/build/image/$(BOARD)
# Our own variables are nothing to the packages that it builds, of which some have a BOARD of their own.
BUILD = env -u MAKEFLAGS -u MAKEOVERRIDES -u BOARD -u BUILDROOT -u VERSION STACK_RELEASE="$(BOARD) $(VERSION)" $(MAKE) -C $(BUILDROOT)
# Of an image and of its bundle: boards take no older one. Four numbers below 65536 at most.
VERSION := $(or $(VERSION),$(shell date -u +%Y.%m%d.%H%M))
KEYS = build/update
image:
	@[ -n "$(BOARD)" ] && [ -n "$(filter $(BOARD),$(CARD_BOARDS))" ] || { echo "image: no board '$(BOARD)'; say BOARD= and one of $(CARD_BOARDS)" >&2; exit 1; }
	@[ -f "$(BUILDROOT)/support/kconfig/merge_config.sh" ] || { echo "image: no Buildroot in '$(BUILDROOT)'; say BUILDROOT= and the path of a checkout (docs/first-board.md)" >&2; exit 1; }
	@[ "$$(id -u)" != 0 ] || [ -n "$(FORCE_UNSAFE_CONFIGURE)" ] || { echo "image: Buildroot does not build as root (its host-tar refuses to be configured): build as an ordinary user, or say FORCE_UNSAFE_CONFIGURE=1" >&2; exit 1; }
	@mkdir -p $(CARDS)
	@$(BUILD) O=$(CARDS) BR2_EXTERNAL=$(CURDIR)/buildroot stack_$(BOARD)_defconfig
	@[ ! -d $(CARDS)/build/stack-local ] || $(BUILD) O=$(CARDS) stack-dirclean # or it would keep what it built before
	@$(BUILD) O=$(CARDS)
	@echo "image: $(CARDS)/images/sdcard.img is the card"
	@[ ! -f $(KEYS)/update.key ] || $(MAKE) -s bundle BOARD=$(BOARD)

update-key:
	@python3 -P laptop/update_bundle.py key $(KEYS)

bundle:
	@release=$(CARDS)/target/etc/stack-release; [ -f "$$release" ] || { echo "bundle: there is no $$release; \`make image BOARD=$(BOARD)\` makes it" >&2; exit 1; }; \
	set -- $$(cat "$$release"); python3 -P laptop/update_bundle.py bundle $(CARDS)/images "$$1" "$$2" $(KEYS) "$(CARDS)/images/$$1-$$2.swu"

BUNDLE ?=
update:
	@[ -n "$(BOARD)" ] && [ -f "$(BUNDLE)" ] || { echo "update: say BOARD=root@host BUNDLE=FILE, as \`make bundle\` makes one" >&2; exit 1; }
	@$(SSH_COMMAND) "$(BOARD)" "$(SV) update -" <"$(BUNDLE)"

# The pages that come from the program, then the site; a warning is an error. -P: mkdocs must not import our modules.
.PHONY: docs
docs: NEEDS = requirements-docs.txt
docs: setup
	@$(PYTHON) -B docs/generate.py
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -P -m mkdocs build --quiet --strict
	@echo "docs: build/site/index.html (for the search: $(PYTHON) -m http.server -d build/site)"

# To a board that runs, for as long as it is not booted: see docs/prompt.md.
SSH_COMMAND ?= ssh
SV ?= sv
push: setup
	@[ -n "$(BOARD)" ] || { echo "push: say BOARD=root@host" >&2; exit 1; }
	@rm -rf build/push
	@$(MAKE) -s install DESTDIR="$(CURDIR)/build/push" PREFIX=/usr SITEDIR= TARGET_PYTHON=$(PYTHON)
	@$(PYTHON) laptop/send_push.py --ssh "$(SSH_COMMAND)" --sv "$(SV)" "$(BOARD)" build/push/usr/lib/stack

MODULES ?=
MUTANTS ?=
SEED ?=
mutants: NEEDS = requirements-dev.txt
mutants: setup
	@$(PYTHON) lab/mutants.py $(MODULES) $(if $(MUTANTS),--mutants $(MUTANTS)) $(if $(SEED),--seed $(SEED))

install-board:
	@./install_board.sh install

uninstall-board:
	@./install_board.sh uninstall

clean:
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Names may have spaces: whatever *.py lies in this folder is taken, the profiles of whoever tries something out among them.
# TOLERANT: what does not compile is installed all the same, and PID 1 says what is wrong with it.
TOLERANT ?=
install:
	@umask 022 && $(MAKE) -s install-files # the board's files have the same modes whoever installs them

install-files:
	install -d $(addprefix "$(DESTDIR)",$(SBINDIR) $(PREFIX)/bin $(addprefix $(LIB)/,$(PACKAGES) laptop data names))
	for file in *.py $(PACKAGES:%=%/*.py) laptop/broker.py data/mosquitto.conf data/wifi_recording.txt; do install -m 644 "$$file" "$(DESTDIR)$(LIB)/$$file" || exit 1; done
	for name in $(NAMES); do install -m 644 base/on_path.py "$(DESTDIR)$(LIB)/names/$$name.py" || exit 1; done
	echo $${SOURCE_DATE_EPOCH:-$$(date +%s)} > "$(DESTDIR)$(LIB)/build_date"
	rm -f $(addprefix "$(DESTDIR)",$(SBINDIR)/stack.py $(PREFIX)/bin/sv $(PREFIX)/bin/stack-shell) # a link to busybox would have busybox written over
	sed 's|@PYTHON@|$(INIT_PYTHON)|; s|@LIB@|$(LIB)|' pid1/launcher.py.in > "$(DESTDIR)$(SBINDIR)/stack.py"
	printf '#!/bin/sh\nPYTHONPATH=$(LIB) exec $(INIT_PYTHON) -P $(LIB)/prompt/command.py "$$@"\n' > "$(DESTDIR)$(PREFIX)/bin/sv"
	sed 's,@PYTHON@,$(INIT_PYTHON),; s,@LIB@,$(LIB),' prompt/shell.sh > "$(DESTDIR)$(PREFIX)/bin/stack-shell"
	chmod 755 $(addprefix "$(DESTDIR)",$(SBINDIR)/stack.py $(PREFIX)/bin/sv $(PREFIX)/bin/stack-shell)
	if [ -n "$(SITEDIR)" ]; then install -d "$(DESTDIR)$(SITEDIR)" && echo 'import sys; sys.path.insert(0, "$(LIB)/names")' > "$(DESTDIR)$(SITEDIR)/stack.pth"; fi
	find "$(DESTDIR)$(LIB)" -name __pycache__ -prune -exec rm -rf {} +
	$(TARGET_PYTHON) -m compileall $(if $(TOLERANT),-qq,-q) -s "$(DESTDIR)" --invalidation-mode checked-hash "$(DESTDIR)$(LIB)" $(if $(TOLERANT),|| :)
	$(TARGET_PYTHON) -ESB "$(DESTDIR)$(LIB)/base/bundle.py" $(LIB) "$(DESTDIR)" $(if $(TOLERANT),|| :)
