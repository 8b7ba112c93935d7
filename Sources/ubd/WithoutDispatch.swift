#if UBD_STATIC
    import Glibc

    // The static program without libdispatch. ArgumentParser brings Swift's runtime for concurrency along, whose executor names
    // these symbols of libdispatch; nothing in `ubd` uses either. libdispatch has a table of 126 KiB with 4,032 pointers: a start
    // relocates each of them, and copies 32 pages for that. Where the linker finds the names here, it takes no libdispatch.
    // Whoever came to one of them anyway would find the end of the program, not another's code.

    @_cdecl("_dispatch_main_q") func dispatchMainQ() -> Never { abort() }
    @_cdecl("_dispatch_queue_attr_concurrent") func dispatchQueueAttrConcurrent() -> Never { abort() }
    @_cdecl("_dispatch_source_type_timer") func dispatchSourceTypeTimer() -> Never { abort() }
    @_cdecl("dispatch_activate") func dispatchActivate() -> Never { abort() }
    @_cdecl("dispatch_after_f") func dispatchAfterF() -> Never { abort() }
    @_cdecl("dispatch_assert_queue") func dispatchAssertQueue() -> Never { abort() }
    @_cdecl("dispatch_async_f") func dispatchAsyncF() -> Never { abort() }
    @_cdecl("dispatch_main") func dispatchMain() -> Never { abort() }
    @_cdecl("dispatch_queue_attr_make_with_qos_class") func dispatchQueueAttrMakeWithQosClass() -> Never { abort() }
    @_cdecl("dispatch_queue_create") func dispatchQueueCreate() -> Never { abort() }
    @_cdecl("dispatch_queue_set_width") func dispatchQueueSetWidth() -> Never { abort() }
    @_cdecl("dispatch_release") func dispatchRelease() -> Never { abort() }
    @_cdecl("dispatch_set_context") func dispatchSetContext() -> Never { abort() }
    @_cdecl("dispatch_source_create") func dispatchSourceCreate() -> Never { abort() }
    @_cdecl("dispatch_source_set_event_handler_f") func dispatchSourceSetEventHandlerF() -> Never { abort() }
    @_cdecl("dispatch_source_set_timer") func dispatchSourceSetTimer() -> Never { abort() }
    @_cdecl("dispatch_walltime") func dispatchWalltime() -> Never { abort() }
#endif
