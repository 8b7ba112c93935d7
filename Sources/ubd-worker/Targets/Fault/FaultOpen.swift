import Glibc
import KernelABI
import SystemCalls
import Targets
import WorkerProtocol

extension FaultTarget: ServedTarget {
    static var manifest: TargetManifest { .fault }

    /// Opens the target on the client's files: the data's, which target loop opens, and the control file.
    static func open(
        _ launch: LaunchMessage, files: [ClientFile], kernel: KernelVersion, canWait: Bool
    ) throws(WorkerFailure) -> OpenTarget {
        guard !files[0].isBlockDevice else { throw WorkerFailure(.geometry, errno: ENOTBLK) }
        let control = files[1]
        try check(control)
        var buffered = launch
        buffered.options.buffered = true
        var open = try LoopTarget.open(buffered, files: [files[0]], kernel: kernel, canWait: canWait)
        let cacheBlocks = Int(launch.options.faultCache) / FaultCache.block
        // Nothing is written past the cache, so a forced write is a write and a flush.
        if cacheBlocks > 0 { open.geometry.attributes.remove(.fua) }
        // Zeros are written as data, which the rules are about.
        open.geometry.maxWriteZeroesSectors = 0
        let readOnly = open.geometry.attributes.contains(.readOnly)
        open.served = FaultTarget(
            start: launch.options.offset,
            bounds: DiskBounds(size: open.geometry.size, maxIOBytes: launch.maxIOBytes), readOnly: readOnly,
            writeFlags: kernel >= KernelVersion(6, 9) ? IOUring.ReadWrite.noAppend : 0, cacheBlocks: cacheBlocks,
            keepsSome: launch.options.keepsSome, beginning: try Beginning(launch.options, control))
        open.files.append(control.descriptor)
        // The state and the log are written on a read-only disk, too.
        open.unneeded.removeAll { $0 == IOUring.Operation.write }
        open.fileSizeLimit = max(open.fileSizeLimit ?? 0, UInt64(FaultControl.bytes))
        return open
    }

    private static func check(_ control: ClientFile) throws(WorkerFailure) {
        let bytes = control.status.st_size
        guard !control.isBlockDevice, control.isWritable, bytes == FaultControl.bytes else {
            throw WorkerFailure(.faultPlan, errno: EINVAL, detail: UInt64(clamping: max(1, bytes)))
        }
    }
}

extension FaultTarget {
    /// What a worker begins with: the blocks of the plan and of the state, in words. Those that the control file has; else those
    /// that the options make.
    struct Beginning: Sendable {
        let plan: [UInt64]
        let state: [UInt64]

        init(plan: FaultPlan, state: [UInt64]? = nil) {
            self.plan = FaultControl.encode(plan, sequence: 0, generation: 0)
            self.state = state ?? Beginning.firstState(plan)
        }

        init(_ options: DeviceOptions, _ control: ClientFile) throws(WorkerFailure) {
            let made: FaultPlan
            do { made = try FaultPlan(options) } catch { throw WorkerFailure(.faultPlan, errno: EINVAL) }
            let plan = try Beginning.read(control, FaultControl.planOffset)
            let state = try Beginning.read(control, FaultControl.stateOffset)
            let isPlan = plan.withUnsafeBufferPointer { FaultControl.plan($0.baseAddress!) != nil }
            let isState = state.withUnsafeBufferPointer { FaultControl.isState($0.baseAddress!) }
            self.plan = isPlan ? plan : FaultControl.encode(made, sequence: 0, generation: 0)
            self.state = isState ? state : Beginning.firstState(made)
        }

        private static func firstState(_ plan: FaultPlan) -> [UInt64] {
            var state = [UInt64](repeating: 0, count: FaultControl.words)
            state[FaultControl.State.threshold] = plan.cutAfter
            state[FaultControl.State.sets] = plan.sets
            state[FaultControl.State.power] = plan.power
            return state
        }

        private static func read(_ control: ClientFile, _ offset: Int) throws(WorkerFailure) -> [UInt64] {
            var words = [UInt64](repeating: 0, count: FaultControl.words)
            let count = words.withUnsafeMutableBytes {
                pread(control.descriptor, $0.baseAddress, FaultControl.block, off_t(offset))
            }
            guard count == FaultControl.block else {
                throw WorkerFailure(.faultPlan, errno: EIO, detail: UInt64(clamping: max(1, count)))
            }
            return words
        }
    }
}
