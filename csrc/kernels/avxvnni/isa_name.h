// This folder is built twice: as avxvnni with the VEX encoding and as avxvnni_evex with the EVEX one.
#pragma once

#define TERSOR_JOIN_NAMES(a, b) a##b
#define TERSOR_JOIN(a, b) TERSOR_JOIN_NAMES(a, b)
#define TERSOR_QUOTE_NAME(a) #a
#define TERSOR_QUOTE(a) TERSOR_QUOTE_NAME(a)
