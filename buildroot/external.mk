include $(sort $(wildcard $(BR2_EXTERNAL_STACK_PATH)/package/*/*.mk))
