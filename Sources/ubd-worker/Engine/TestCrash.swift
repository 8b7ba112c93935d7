#if UBD_TEST_CRASH
    import Glibc
    import KernelABI
    import Ring

    /// For tests only (`make crash-worker` compiles it): a read of a magic block breaks the worker. The init of a pid
    /// namespace ignores SIGSEGV, SIGILL and SIGSYS from outside, so a crash must come from inside.
    ///
    /// Magic are reads of exactly one of the sixteen blocks of 4 KiB at 512 KiB. Block `i` breaks the worker as
    /// `Kind(i)` says, after the read was answered, so that no replacement gets it again; block `8 + i` before, so that
    /// each replacement breaks, too. A parallel load stays beyond them: fio --offset=1M.
    struct TestCrash: Sendable {
        enum Kind: UInt64, Sendable {
            case segmentation
            case illegalInstruction
            /// kill(2), which the sandbox forbids.
            case forbiddenCall
            /// exit_group(3)
            case exit
            /// Runs for ever and serves nothing.
            case spin
        }

        /// The sector of block 0.
        private static let start: UInt64 = (512 << 10) >> 9
        private static let blockSectors: UInt64 = 8

        private var doom: Kind?

        /// The crash for a magic request; nil for all others.
        @inline(never)
        mutating func outcome(_ descriptor: UblkIODescriptor) -> Outcome? {
            guard descriptor.operation == UblkIOOperation.read, descriptor.startSector >= TestCrash.start,
                UInt64(descriptor.sectors) == TestCrash.blockSectors
            else { return nil }
            let block = (descriptor.startSector &- TestCrash.start) / TestCrash.blockSectors
            guard block < 16, let kind = Kind(rawValue: block % 8) else { return nil }
            if block >= 8 { TestCrash.happen(kind) }
            doom = kind
            return .done(descriptor.sectors << 9)
        }

        /// After a turn: commits the answers to the kernel, then crashes.
        @inline(never)
        static func end<T: Target>(_ queue: inout Queue<T>) {
            guard let kind = queue.crash.doom else { return }
            _ = queue.ring.submit(waitingFor: 0)
            happen(kind)
        }

        @inline(never)
        private static func happen(_ kind: Kind) {
            switch kind {
            case .segmentation: UnsafeMutablePointer<UInt64>(bitPattern: 8)?.pointee = 1
            case .illegalInstruction:
                // An overflow executes ud2.
                _exit(Int32(truncatingIfNeeded: Int.max - 1 + 2 * Int(kind.rawValue)))
            case .forbiddenCall: kill(1, 0)
            case .exit: _exit(3)
            case .spin: while true {}
            }
        }
    }
#endif
