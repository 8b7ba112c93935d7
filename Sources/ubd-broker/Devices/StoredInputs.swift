import SystemCalls

/// Which devices have a socket in systemd's store, and when (`DescriptorStore`).
extension Broker {
    /// Lets systemd keep the files of a device that serves. Connections to a server are of no use to another worker.
    func storeInputs(of device: ManagedDevice) {
        guard let descriptorStore, device.step == .live, device.info.state == .live, device.parking != nil,
            device.launch?.target.survival == .inputs, device.info.recovery != .none
        else { return }
        descriptorStore.keep(StoredName(device)) { [weak device] in device?.parking?.raw }
    }

    /// The device needs its files no more, or is to have others.
    func unstoreInputs(of device: ManagedDevice) {
        letGo(descriptorStore?.drop(StoredName(device)) ?? [], owner: device.owner)
    }

    /// Gives a device the socket that systemd has kept for it.
    func takeStoredInputs(of device: ManagedDevice) {
        guard device.parking == nil, device.launch?.target.survival == .inputs, let inode = device.parked,
            let socket = descriptorStore?.take(StoredName(device), inode: inode)
        else { return }
        device.parking = consume socket
        Log.notice("file-stored", ("device", "\(device.id)"), ("owner", "\(device.owner)"))
    }

    /// After the comparison with the kernel: lets go of what no device needs.
    func settleStoredInputs() {
        guard let descriptorStore else { return }
        let needless = descriptorStore.settle { [self] name in
            guard let device = devices[name.id], device.info.generation == name.generation,
                device.launch?.target.survival == .inputs
            else { return nil }
            if let held = try? device.parking?.status() { return .init(inode: UInt64(held.st_ino), isHeld: true) }
            return device.parked.map { .init(inode: $0, isHeld: false) }
        }
        if !needless.isEmpty {
            Log.warning("stray-stored", ("count", "\(needless.count)"), ("what", "no device has these sockets"))
        }
        letGo(needless, owner: 0)
        for device in devices.values { storeInputs(of: device) }
    }

    /// Lets go of what systemd passed and ubd never stored.
    func letGo(foreign: [PassedDescriptors.Foreign]) {
        for descriptor in foreign {
            Log.warning("stray-stored", ("name", descriptor.name), ("what", "ubd did not store it"))
            descriptorStore?.dropForeign(descriptor.name)
        }
        letGo(foreign.map(\.descriptor), owner: 0)
    }

    private func letGo(_ sockets: [Int32], owner: UInt32) {
        for socket in sockets {
            undertaker.letGo(FileDescriptor(owning: socket), owner: owner, isStranger: owner == 0)
        }
    }
}
