import BrokerInterface
import Glibc
import KernelABI
import SystemCalls
import WorkerProtocol

/// What a starting broker does with an earlier broker's devices: it takes over live ones and undoes incomplete ones. It
/// never touches devices of other ublk servers: the kernel's record must have our generation.
extension Broker {
    /// `done` is called when all records have been compared with the kernel; no client is served before.
    func reconcile(done: @escaping () -> Void = {}) throws {
        let (records, damaged) = try store.load()
        for path in damaged {
            Log.error(
                "record-damaged", ("file", path), ("remedy", "see whether its device still exists, then remove it"))
        }
        let workers = try records.map { record in try record.worker.flatMap { try adopt($0) } }
        let recorded = Set(workers.compactMap { $0?.uid })
        if !records.isEmpty { try demandDriver() }
        let unrecorded = try uids.processes(except: recorded).filter { $0.status.isWorker(uid: $0.uid, gid: workerGID) }
        if !configuration.takesDown, let user = uids.collision(except: recorded.union(unrecorded.map(\.uid))) {
            throw StartupRefusal(
                message: "uids \(uids.range.lowerBound) to \(uids.range.upperBound - 1) are meant for workers, but "
                    + "\(user) is among them; choose others with --uid-base and --uid-count", status: 1)
        }
        try removeStrays(except: unrecorded.compactMap { Broker.device(servedBy: $0.pid) })
        for orphan in unrecorded { keepUID(of: orphan.pid, orphan.uid) }
        var unexamined = records.count
        if unexamined == 0 {
            groups?.removeOthers(than: [])
            settleStoredInputs()
            loop.later(done)
        }
        for (record, worker) in zip(records, workers) {
            let device = ManagedDevice(record)
            device.worker = worker
            device.launch = record.launch
            // Records of earlier versions have the offset only in the launch message.
            if device.info.offset == nil, let offset = record.launch?.options.offset, offset > 0 {
                device.info.offset = Int64(clamping: offset)
            }
            device.recoveryStarted = record.recoveryStarted
            device.recoveryAnswered = record.recoveryAnswered
            // Of another boot it would be nonsense.
            device.serverWait.began = record.inputsLost.flatMap { $0 <= now() ? $0 : nil }
            device.sockets = record.sockets
            device.parked = record.parked
            device.file = record.file
            device.pendingSize = record.pendingSize
            device.releasesBytes = record.releasesBytes
            if let worker {
                device.program = program(of: worker, version: record.device.workerVersion)
                device.workerProgram = device.program
            }
            if let worker, !uids.adopt(worker.uid) {
                Log.warning(
                    "uid", ("device", "\(device.id)"), ("uid", "\(worker.uid)"), ("what", "out of range or in use"))
            }
            enlist(device)
            examine(device) { [self] in
                unexamined -= 1
                if unexamined > 0 { return }
                groups?.removeOthers(than: devices.values.map { group(of: $0) })
                settleStoredInputs()
                done()
            }
        }
    }

    /// Why the driver cannot be used; nil when it can, or when the kernel has none. Without the driver there can be no
    /// device. Any other error says nothing about the devices, and undoing them would end devices that serve.
    private var driverProblem: InterfaceError? {
        do throws(InterfaceError) { try driver.ready() } catch {
            if case .kernelUnsupported(_, _, "ublk_drv") = error { return nil }
            return error
        }
        return nil
    }

    private func demandDriver() throws {
        guard let error = driverProblem else { return }
        throw StartupRefusal(
            message: "there are devices to take over, but \(error.message); \(error.remedy)", status: 1)
    }

    /// The number of the device whose control node a worker has open. The launcher opened it, and a sealed worker
    /// cannot change its descriptors. It is used only to keep the number reserved.
    private static func device(servedBy pid: Int32) -> UInt32? {
        let name = linkTarget("/proc/\(pid)/fd/\(WorkerDescriptor.device)")?.split(separator: "/").last
        guard let name, name.hasPrefix("ublkc") else { return nil }
        return UInt32(name.dropFirst(5))
    }

    /// A worker without a record, or with a uid that two records have: its uid stays in use until it ends.
    private func keepUID(of pid: Int32, _ uid: UInt32) {
        Log.warning("worker-without-record", ("worker", "\(pid)"), ("uid", "\(uid)"))
        guard uids.adopt(uid) else { return }
        orphans.watch(pid) { [unowned self] in uids.giveBack(uid) }
    }

    /// Compares the record with the kernel's device of this number.
    private func examine(_ device: ManagedDevice, done: @escaping () -> Void) {
        if let problem = driverProblem {
            leave(device, problem.message)
            return loop.later(done)
        }
        guard driver.isOpen else {
            // Without the driver there can be no device; only our own files are left.
            undo(device)
            return loop.later(done)
        }
        driver.info(of: device.id) { [self] answer in
            guard judge(device, answer) else { return done() }
            takeOver(device, done: done)
        }
    }

    /// Whether it serves and is to be taken over. Everything else is begun here.
    private func judge(_ device: ManagedDevice, _ answer: DriverAnswer<UblkDeviceInfo>) -> Bool {
        guard let info = answer.content else {
            if answer.verdict == .gone {
                undo(device)
            } else {
                leave(device, "the kernel returned no information on it: \(SystemError.message(answer.errno))")
            }
            return false
        }
        guard info.serverFlags == device.info.generation else {
            Log.warning("not-ours", ("device", "\(device.id)"))
            undo(device)
            return false
        }
        device.isInKernel = true
        device.mayBeStarted = device.step != .adding
        settleSize(device)
        return decide(device, info)
    }

    /// An earlier broker died while the size changed: what the kernel's disk has counts. A device that was to become larger
    /// does so when a larger worker serves it; one that was to become smaller keeps its size, since it may be in use by now.
    private func settleSize(_ device: ManagedDevice) {
        guard let pending = device.pendingSize else { return }
        let bytes = diskBytes(device.id)
        if bytes == pending { return device.resized(to: pending) }
        if pending < device.info.sizeBytes { device.pendingSize = nil }
        device.kernelMayHavePending = bytes == nil
    }

    /// Nobody can tell what became of it: it is left alone, and only the death of its worker is heard.
    private func leave(_ device: ManagedDevice, _ reason: String) {
        device.setState(.unmanaged, reason: reason)
        Log.error("unexamined", ("device", "\(device.id)"), ("why", reason))
        watchOver(device)
    }

    private func decide(_ device: ManagedDevice, _ info: UblkDeviceInfo) -> Bool {
        if device.step == .live, device.info.state == .failed {
            save(device)
            return false
        }
        // Whatever its state is, there is nothing to keep of a device that nobody has got yet, or that is to go.
        if [.adding, .starting, .deleting].contains(device.step) {
            undo(device)
            return false
        }
        guard let state = info.deviceState else {
            leave(device, "the kernel tells a state (\(info.state)) that this version of ubd does not know")
            return false
        }
        let serves = state == .live && info.serverPID == device.worker?.pid && device.worker?.isAlive == true
        // An upgrading one may have been told to take no more requests: only a new worker helps. A recovering one that serves
        // had not recorded the end of its recovery.
        if serves, device.step != .upgrading {
            device.step = .live
            device.recoveryStarted = false
            device.recoveryAnswered = false
            return true
        }
        // Its worker's death leaves a device that can be recovered QUIESCED. Only STOP_DEV makes it DEAD: its deletion had
        // begun. (TRY_STOP_DEV has no step of its own: it may be refused, and then the device is as live as before.)
        if device.step == .live, state == .dead, device.info.recovery != .none {
            undo(device)
        } else {
            mend(device, isStopped: state == .dead)
        }
        return false
    }

    /// Takes over a live device: verifies its worker as if it were new, and takes its sockets back.
    ///
    /// A worker that was just killed loses its threads and its status before its pidfd fires. So one that does not pass is
    /// looked at again when a killed process is gone: its death is then mended like any other.
    private func takeOver(_ device: ManagedDevice, looks: Int = 2, done: @escaping () -> Void) {
        guard let worker = device.worker, worker.end == nil else {
            noteEarlyDeath(of: device)
            return done()
        }
        let lost = reclaim(device, worker)
        let problem = verification(of: worker, device, threads: Int(device.info.queues) + 1) ?? lost
        // A host that goes down ends the device whatever its worker is.
        if problem != nil, looks > 1, !configuration.takesDown {
            loop.after(milliseconds: WorkerStart.dying) { [self] in takeOver(device, looks: looks - 1, done: done) }
            return
        }
        takenOver(device, worker, problem ?? listen(to: worker))
        done()
    }

    private func noteEarlyDeath(of device: ManagedDevice) {
        let pid = device.worker?.pid
        release(device)
        // So that the death is counted.
        device.info.workerPid = pid
        // A moment ago the kernel said that it is live.
        mend(device, isStopped: false)
    }

    private func takenOver(_ device: ManagedDevice, _ worker: any Worker, _ problem: String?) {
        if let problem {
            // It serves on, but its worker's death cannot be recovered automatically.
            device.setState(.unmanaged, reason: "it could not be taken over: \(problem)")
        } else {
            device.setState(.live)
        }
        noteLayout(of: device)
        noteServing(device)
        save(device)
        // udev may process a change event at any time and must find the owner.
        try? store.writeUdev(device.info, link: device.info.link == nil ? nil : Nodes.linkName(device.id))
        Log.info(
            "adopted", ("device", "\(device.id)"), ("worker", "\(worker.pid)"), ("state", device.info.state.rawValue))
        watchOver(device)
        checkNames(device)
        // An earlier broker died between the larger worker and the kernel.
        if device.pendingSize != nil, device.info.state == .live { SizeUpdate(device, broker: self) { _ in }.begin() }
    }

    /// Takes back the worker's descriptors. Returns what is wrong; nil on success.
    private func reclaim(_ device: ManagedDevice, _ worker: any Worker) -> String? {
        guard let sockets = device.sockets, device.launch != nil else { return "its record has no sockets" }
        do throws(SystemError) {
            device.parking = try worker.reclaim(sockets)
            device.statistics = try DeviceStatistics(
                adopting: worker.reclaimStatistics(), queues: Int(device.info.queues))
            return nil
        } catch { return "\(error)" }
    }

    /// Not for a replacement in progress: it may have sent messages that nobody has read.
    private func listen(to worker: any Worker) -> String? {
        do throws(SystemError) { try worker.listen() } catch { return "\(error)" }
        return nil
    }

    /// Recovers a device whose worker died while no broker ran, or was just being replaced. `isStopped`: the kernel has
    /// stopped it, so no worker can serve it any more.
    private func mend(_ device: ManagedDevice, isStopped: Bool) {
        if configuration.takesDown { return }
        guard device.info.recovery != .none, !isStopped else {
            return fail(device, because: "its worker died while no broker ran; delete it and add it again")
        }
        if device.needsFreshInputs, device.step != .recovering { return endUsedInputs(device) }
        // The files are in the parking socket, whose last end may belong to a replacement in progress.
        if let worker = device.worker, worker.isAlive {
            _ = reclaim(device, worker)
            if device.recoveryAnswered, !canRepeatRecovery { return awaitSeal(device, worker, looks: 150) }
        }
        replaceWorker(device)
    }

    /// The last worker, which may still live, has used the connections. (A replacement has not: it serves only when the recovery
    /// is over.)
    private func endUsedInputs(_ device: ManagedDevice) {
        noteUnseenDeath(of: device)
        if let worker = device.worker, worker.end == nil {
            worker.setHandler { [self] event in
                if case .ended = event, device.worker === worker { release(device) }
            }
            worker.kill()
        }
        awaitInputs(device, because: "its worker \(device.info.lastDeath ?? "ended")")
    }

    /// Before 6.16 it matters whether a replacement has fetched all queues or none. A replacement that has fetched all
    /// is a sealed worker, after whose death START_USER_RECOVERY may be sent. Its second filter proves that, since the
    /// filter comes after the fetches.
    private func awaitSeal(_ device: ManagedDevice, _ worker: any Worker, looks: Int) {
        guard devices[device.id] === device, device.teardown == nil else { return }
        if verification(of: worker, device, threads: Int(device.info.queues) + 1) == nil {
            device.recoveryStarted = false
            device.recoveryAnswered = false
            save(device)
            return replaceWorker(device)
        }
        guard looks > 0, worker.isAlive else { return replaceWorker(device) }
        loop.after(milliseconds: 20) { [self] in awaitSeal(device, worker, looks: looks - 1) }
    }

    private func replaceWorker(_ device: ManagedDevice) {
        noteUnseenDeath(of: device)
        guard hasFiles(device) else {
            return awaitInputs(
                device,
                because: device.needsFreshInputs
                    ? "its worker \(device.info.lastDeath ?? "ended")"
                    : "its worker and the broker died together, so its file was lost")
        }
        let purpose = UpgradeOperation.Purpose.self
        let reason = device.pendingSize == nil ? purpose.upgrading : purpose.resizing
        RecoverOperation(device, broker: self, reason: device.step == .upgrading ? reason : nil).begin()
    }

    private func noteUnseenDeath(of device: ManagedDevice) {
        guard device.worker == nil, device.info.workerPid != nil else { return }
        device.info.deaths += 1
        device.info.lastDeath = "ended while no broker ran"
        device.info.workerPid = nil
        device.info.workerUid = nil
    }

    /// Whether a new worker would have the device's files, or needs none.
    private func hasFiles(_ device: ManagedDevice) -> Bool {
        takeStoredInputs(of: device)
        if device.parking == nil, device.launch?.target.survival == .nothing, let pair = try? makeMessagePair() {
            device.parking = consume pair.first
        }
        return device.parking != nil && device.launch != nil
    }

    /// Gives a device another worker after a death; called through `Broker.replaceWorker`.
    func replaceAfterDeath(_ device: ManagedDevice, _ change: ProcessChange) {
        if device.info.state == .unmanaged { return endedUnmanaged(device, change) }
        if device.needsFreshInputs {
            release(device)
            return awaitInputs(device, because: "its worker \(device.info.lastDeath ?? "\(change)")")
        }
        RecoverOperation(device, broker: self).begin()
    }

    /// The worker of a device that could not be taken over has ended: its files are lost, but not the device.
    private func endedUnmanaged(_ device: ManagedDevice, _ change: ProcessChange) {
        release(device)
        guard !device.needsFreshInputs, hasFiles(device) else {
            return awaitInputs(
                device,
                because: device.needsFreshInputs
                    ? "its worker \(device.info.lastDeath ?? "\(change)")"
                    : "its worker \(change), and the broker does not have its file")
        }
        RecoverOperation(device, broker: self).begin()
    }

    private func undo(_ device: ManagedDevice) {
        Log.notice("undo", ("device", "\(device.id)"), ("step", device.step.rawValue))
        Teardown(device, broker: self) { _ in }.begin(.killFirst)
    }
}
