import BrokerInterface
import Glibc
import KernelABI
import SystemCalls

/// What a starting broker finds that belongs to no device, or has been changed: it is repaired and logged.
extension Broker {
    /// Removes links and udev records of devices without a record. A damaged record counts as a record: its device may
    /// serve. `served`: the numbers of devices whose workers run without a record.
    func removeStrays(except served: [UInt32]) throws(SystemError) {
        let recorded = Set(try store.names() + served.map { "\($0)" })
        for name in listFolder(store.udevFolder) where !recorded.contains(name) {
            // The next device with this number may be another server's, and udev would give it to our user.
            unlink("\(store.udevFolder)/\(name)")
            Log.notice("stray-udev-record", ("name", name))
        }
        for name in listFolder(nodes.folder) {
            guard name.hasPrefix("ubdb"), let id = UInt32(name.dropFirst(4)), name == Nodes.linkName(id),
                !recorded.contains("\(id)"), nodes.isStrayLink(id)
            else { continue }
            nodes.removeLink(id)
            Log.notice("stray-link", ("link", nodes.link(id)))
        }
    }

    /// Restores the owner and the link of a device that was taken over.
    func checkNames(_ device: ManagedDevice) {
        driver.parameters(of: device.id) { [self] answer in
            guard let numbers = answer.content?.nodes, devices[device.id] === device,
                device.teardown == nil
            else { return }
            do throws(SystemError) {
                if try nodes.own(device.id, uid: device.owner, major: numbers.diskMajor, minor: numbers.diskMinor) {
                    Log.notice("owner-restored", ("device", "\(device.id)"), ("owner", "\(device.owner)"))
                }
                guard device.info.link != nil, linkTarget(nodes.link(device.id)) == nil else { return }
                device.info.link = try nodes.makeLink(device.id) ? nodes.link(device.id) : nil
                if device.info.link != nil { Log.notice("link-restored", ("device", "\(device.id)")) }
                save(device)
            } catch {
                // It serves on; its owner may need root's help.
                Log.warning("names", ("device", "\(device.id)"), ("why", "\(error)"))
            }
        }
    }

    /// The program that a worker runs: the broker's or another device's object if the file is the same.
    func program(of worker: any Worker, version: String?) -> WorkerProgram? {
        guard let found = WorkerProgram(of: worker) else {
            Log.warning("program-unknown", ("worker", "\(worker.pid)"))
            return nil
        }
        let known = [program] + devices.values.compactMap(\.program)
        let result = known.first { $0.identity == found.identity } ?? found
        if result.version == nil { result.version = version }
        return result
    }
}
