################################################################################
#
# stack
#
################################################################################

STACK_VERSION = local
STACK_SITE = $(realpath $(BR2_EXTERNAL_STACK_PATH)/..)
STACK_SITE_METHOD = local
STACK_LICENSE = MIT
STACK_LICENSE_FILES = LICENSE
STACK_DEPENDENCIES = host-python3 python3

# What a developer's tree has besides the project; output of Buildroot may be in build/.
STACK_OVERRIDE_SRCDIR_RSYNC_EXCLUSIONS = \
	--exclude=/.venv --exclude=/build --exclude=__pycache__ --exclude='/.*_cache' --exclude=/.hypothesis

# Rows of settings.py without what the menu left out.
STACK_LEFT_OUT = \
	$(if $(BR2_PACKAGE_STACK_WIFI),,wpa_supplicant scan_proxy wifi_scan wifi_analyzer) \
	$(if $(BR2_PACKAGE_STACK_GPS),,gps@ fakegps) \
	$(if $(BR2_PACKAGE_STACK_UPLINK),,uplink)

define STACK_BUILD_CMDS
	cp $(STACK_PKGDIR)/settings_image.py $(@D)/profiles/image.py
	$(SED) 's/^_LEFT_OUT = .*/_LEFT_OUT = "$(strip $(STACK_LEFT_OUT))".split()/' $(@D)/profiles/image.py
endef

# The host's Python is of the target's version: the byte code fits.
define STACK_INSTALL_TARGET_CMDS
	rm -rf $(TARGET_DIR)/usr/lib/stack
	$(TARGET_MAKE_ENV) $(MAKE) -C $(@D) install \
		DESTDIR=$(TARGET_DIR) \
		INIT_PYTHON=/usr/bin/python3 \
		SITEDIR=/usr/lib/python$(PYTHON3_VERSION_MAJOR)/site-packages \
		TARGET_PYTHON=$(HOST_DIR)/bin/python3
endef

# CPython as PID 1 dies without /dev/urandom, and nothing of ours has run by then.
define STACK_PERMISSIONS
	/dev/console c 622 0 0 5 1 - - -
	/dev/null c 666 0 0 1 3 - - -
	/dev/urandom c 666 0 0 1 9 - - -
endef

$(eval $(generic-package))
