"""Whether macOS lets this program hear the microphone, asked of AVFoundation through the Objective-C runtime."""

from __future__ import annotations

import ctypes
import sys

STATES = ("not asked yet", "restricted", "denied", "allowed")
ALLOW = "System Settings > Privacy & Security > Microphone: allow the terminal, then restart it"
AVFOUNDATION = "/System/Library/Frameworks/AVFoundation.framework/AVFoundation"


def permission() -> str:
    """One of STATES; "not asked" on other systems, "unknown" where the question cannot be put."""
    if sys.platform != "darwin":
        return "not asked"
    try:
        return STATES[_authorization_status()]
    except (OSError, AttributeError, ValueError, IndexError):
        return "unknown"


def _authorization_status() -> int:
    """[AVCaptureDevice authorizationStatusForMediaType:AVMediaTypeAudio]"""
    framework = ctypes.CDLL(AVFOUNDATION)
    runtime = ctypes.CDLL("/usr/lib/libobjc.dylib")
    runtime.objc_getClass.restype = runtime.sel_registerName.restype = ctypes.c_void_p
    runtime.objc_getClass.argtypes = runtime.sel_registerName.argtypes = [ctypes.c_char_p]
    device = runtime.objc_getClass(b"AVCaptureDevice")
    selector = runtime.sel_registerName(b"authorizationStatusForMediaType:")
    audio = ctypes.c_void_p.in_dll(framework, "AVMediaTypeAudio")
    arguments = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    send = ctypes.CFUNCTYPE(ctypes.c_long, *arguments)(("objc_msgSend", runtime))
    return int(send(device, selector, audio))
