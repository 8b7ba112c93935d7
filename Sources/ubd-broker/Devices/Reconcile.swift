import BrokerInterface
import Glibc
import KernelABI
import SystemCalls

/// What a starting broker makes of what an earlier one left: live devices are taken over, half-made ones undone. Devices
/// of other ublk servers are never touched: the kernel's own record must carry our generation.
extension Broker {
    func reconcile() throws {
        let (records, damaged) = store.load()
        for path in damaged {
            Log.error(
                "record-damaged", ("file", path), ("remedy", "see whether its device is still there, then remove it"))
        }
        // A worker may have been left stopped by a broker that died during START_DEV.
        let workers = records.map { record in record.worker.flatMap { adopt($0) } }
        if let user = uids.collision(except: Set(records.compactMap { $0.worker?.uid })) {
            throw Startup.Refusal(
                message: "uids \(uids.range.lowerBound) to \(uids.range.upperBound - 1) are meant for workers, but "
                    + "\(user) is among them; choose others with --uid-base and --uid-count", status: 1)
        }
        for (record, worker) in zip(records, workers) {
            let device = ManagedDevice(info: record.device, memoryBytes: record.memoryBytes, step: record.step)
            device.worker = worker
            if let worker, !uids.adopt(worker.uid) {
                Log.warning(
                    "uid", ("device", "\(device.id)"), ("uid", "\(worker.uid)"), ("what", "out of range or twice"))
            }
            devices[device.id] = device
            examine(device)
        }
    }

    private func adopt(_ recorded: DeviceRecord.Worker) -> (any Worker)? {
        let worker = try? WorkerProcess(
            adopting: recorded.pid, uid: recorded.uid, startTime: recorded.startTime, loop: loop)
        try? worker?.resume()
        return worker
    }

    /// Compares the record with the kernel's device of that number.
    private func examine(_ device: ManagedDevice) {
        guard let control = try? driver.ready() else {
            // Without the driver there can be no device: what is left is ours alone.
            return undo(device)
        }
        let buffer = [UInt8](repeating: 0, count: MemoryLayout<UblkDeviceInfo>.size)
        let request = ControlRequest(operation: .getDeviceInfo, device: device.id, buffer: buffer)
        control.submit(request) { [self] answer in
            guard case .result(let result, let bytes) = answer, result >= 0 else { return undo(device) }
            let info = bytes.withUnsafeBytes { $0.loadUnaligned(as: UblkDeviceInfo.self) }
            guard info.serverFlags == device.info.generation else {
                Log.warning("not-ours", ("device", "\(device.id)"))
                return undo(device)
            }
            device.isInKernel = true
            device.mayBeStarted = device.step != .adding
            decide(device, info)
        }
    }

    private func decide(_ device: ManagedDevice, _ info: UblkDeviceInfo) {
        guard device.step == .live, device.info.state != .failed else { return undo(device) }
        guard let worker = device.worker, worker.isAlive, info.state == UblkDeviceState.live.rawValue,
            info.serverPID == worker.pid
        else {
            device.setState(.failed, reason: "its worker died while no broker was there; delete it and add it again")
            return save(device)
        }
        worker.setHandler { [self] event in workerEvent(device, event) }
        if let problem = verification(of: worker) {
            device.setState(.unmanaged, reason: "its worker can not be verified: \(problem)")
        } else {
            device.setState(.live)
        }
        save(device)
        Log.info(
            "adopted", ("device", "\(device.id)"), ("worker", "\(worker.pid)"), ("state", device.info.state.rawValue))
    }

    private func undo(_ device: ManagedDevice) {
        Log.notice("undo", ("device", "\(device.id)"), ("step", device.step.rawValue))
        Teardown(device, broker: self) { _ in }.begin(.killFirst)
    }
}
