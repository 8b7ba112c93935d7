import BrokerInterface
import Glibc
import KernelABI
import Policy
import SystemCalls
import Testing
import WorkerProtocol

@testable import ubd_broker

@Suite("The number of a device")
struct NumberTests {
    private func udevFiles(_ host: Host) -> [String] { listFolder(host.folder + "/udev") }

    private func udevText(_ host: Host) throws -> String {
        String(decoding: try readFile(host.folder + "/udev/0"), as: UTF8.self)
    }

    @Test("udev hears of an owner when the number is ours, and before there is a disk")
    func tellsUdevInTime() throws {
        let host = try Host()
        var before: [String]?
        var atStart: [String]?
        host.kernel.beforeAnswer[.addDevice] = { before = udevFiles(host) }
        host.kernel.beforeAnswer[.startDevice] = { atStart = udevFiles(host) }
        _ = try host.add().get()
        #expect(before == [] && atStart == ["0"])
        #expect(try udevText(host) == "UBD_OWNER=1000\nUBD_LINK=ubdb0\n")
    }

    @Test("udev hears of a name, with the uid of a user, and of one device of each owner with that name")
    func names() throws {
        let host = try Host()
        #expect(try host.add(AddRequest(target: "null", name: "data")).get().0.name == "data")
        #expect(try udevText(host) == "UBD_OWNER=1000\nUBD_LINK=ubdb0\nUBD_NAME=1000:data\n")
        #expect(
            throws: InterfaceError.idInUse(
                message: "device 0 of yours has the name 'data'",
                remedy: "give another name, or delete that device first", id: 0)
        ) { try host.add(AddRequest(target: "null", name: "data")).get() }
        _ = try host.add(AddRequest(target: "null", name: "data2")).get()
        #expect(try host.delete(0) == nil)
        #expect(try host.add(AddRequest(target: "null", name: "data")).get().0.id == 0)
    }

    @Test("a record whose name could write lines of udev's is damaged")
    func damagedName() throws {
        let host = try Host()
        _ = try host.add(AddRequest(target: "null", name: "data")).get()
        let bytes = try readFile(host.folder + "/state/0")
        #expect(DeviceRecord(bytes: bytes)?.device.name == "data")
        let text = String(decoding: bytes, as: UTF8.self).replacing("\"data\"", with: "\"x\\nUBD_OWNER=0\"")
        #expect(DeviceRecord(bytes: Array(text.utf8)) == nil)
    }

    @Test("udev never hears of an owner of another server's device")
    func sparesOthers() throws {
        let host = try Host()
        host.kernel.addForeignDevice(5)
        var seen: [String] = []
        host.kernel.beforeAnswer[.addDevice] = { seen += udevFiles(host) }
        #expect(throws: InterfaceError.self) { try host.add(AddRequest(target: "null", id: 5)).get() }
        #expect(seen + udevFiles(host) == [])
    }

    @Test("udev is not told to make a link whose name something else has")
    func keepsNames() throws {
        let host = try Host()
        try FileDescriptor.open(host.folder + "/ubdb0", O_WRONLY | O_CREAT, mode: 0o600).writeAll([1])
        #expect(try host.add().get().0.link == nil)
        #expect(try udevText(host) == "UBD_OWNER=1000\n")
    }

    @Test("can be had again at once, although the kernel still has the old device open")
    func waitsForOld() throws {
        let host = try Host()
        _ = try host.add(AddRequest(target: "null", id: 2)).get()
        #expect(try host.delete(2) == nil)
        var tries = 0
        host.kernel.failures[.addDevice] = EEXIST
        host.kernel.beforeAnswer[.addDevice] = {
            tries += 1
            if tries == 3 { host.kernel.failures[.addDevice] = nil }
        }
        #expect(try host.add(AddRequest(target: "null", id: 2)).get().0.state == .live)
        #expect(tries == 3)
    }

    @Test(
        "is not given away while anything of ours has it, and that stays as it is",
        arguments: ["state/0", "state/0.new", "udev/0", "udev/0.new"])
    func keepsTaken(_ name: String) throws {
        let host = try Host()
        let path = "\(host.folder)/\(name)"
        try FileDescriptor.open(path, O_WRONLY | O_CREAT, mode: 0o600).writeAll(Array("{".utf8))
        #expect(try host.add().get().0.id == 1)
        guard case .failure(.idInUse(let message, _, 0)) = try host.add(AddRequest(target: "null", id: 0)) else {
            Issue.record("number 0 was given away")
            return
        }
        #expect(message.contains("can not be read"))
        #expect(try readFile(path) == Array("{".utf8))
        #expect(host.kernel.log.contains("addDevice 0") == false)
        // The next broker's start removes half-written records.
        unlink(path)
        #expect(try host.add(AddRequest(target: "null", id: 0)).get().0.id == 0)
    }

    @Test("that another server has costs nothing of ours that lies there: a record is made, not overwritten")
    func neverOverwrites() throws {
        let host = try Host()
        let store = host.broker.store
        let device = try host.add().get().0
        let record = try #require(try store.load().records.first)
        #expect(throws: SystemError.self) { try store.create(record) }
        #expect(listFolder(store.folder) == ["\(device.id)"])
        // Another server has 1, and the owner of udev's record of it is unknown: EEXIST is no reason to remove it.
        host.kernel.addForeignDevice(1)
        host.kernel.beforeAnswer[.addDevice] = {
            try? replaceFile(host.folder + "/udev/1", with: Array("UBD_OWNER=1".utf8), mode: 0o644)
        }
        #expect(throws: InterfaceError.self) { try host.add(AddRequest(target: "null", id: 1)).get() }
        #expect(listFolder(host.folder + "/udev").sorted() == ["0", "1"])
        #expect(listFolder(store.folder) == ["0"])
    }

    @Test("leaves no half-written file when a record can't be written")
    func cleansUp() throws {
        let folder = try Host()
        #expect(throws: SystemError.self) { try createFile(folder.folder, with: [1], mode: 0o600) }
        #expect(lstatFails(folder.folder + ".new"))
        #expect(throws: SystemError.self) { try replaceFile(folder.folder, with: [1], mode: 0o600) }
        #expect(lstatFails(folder.folder + ".new"))
    }

    private func lstatFails(_ path: String) -> Bool {
        var status = stat()
        return lstat(path, &status) != 0
    }

    @Test("numbers that a line of the policy names are given to nobody else, and by themselves to nobody at first")
    func reserved() throws {
        let host = try Host(policy: "allow uid=0 target=* ids=0-1,3\nallow group=50 target=*\n")
        #expect(try host.add().get().0.id == 2)
        #expect(try host.add().get().0.id == 4)
        for id: Int64 in [0, 1, 3] {
            #expect(
                try refusal(host, id, Host.alice)
                    == "device number \(id) is reserved by line 1 of /etc/ubd/access.policy")
        }
        #expect(try host.add(AddRequest(target: "null", id: 6)).get().0.id == 6)
        #expect(try host.add(as: Host.root).get().0.id == 5)
        #expect(try host.add(AddRequest(target: "null", id: 3), as: Host.root).get().0.id == 3)
        #expect(
            try refusal(host, 7, Host.root)
                == "device number 7 is outside of ids=0-1,3 of line 1 of /etc/ubd/access.policy")
        #expect(AccessPolicy.greatestID == Int(AddPlan.ids.upperBound) && AccessPolicy.greatestCPU == CPUList.highest)
    }

    private func refusal(_ host: Host, _ id: Int64, _ peer: PeerCredentials) throws -> String {
        switch try host.add(AddRequest(target: "null", id: id), as: peer) {
        case .failure(.notPermitted(let message, _, _)): message
        case .failure(let error): error.name
        case .success: "it was given"
        }
    }

    @Test("a line that names every number gives them by itself, too")
    func ownNumbers() throws {
        let host = try Host(policy: "allow group=50 target=* ids=0-1048575\n")
        #expect(try host.add().get().0.id == 0)
        #expect(try host.add().get().0.id == 1)
    }

    @Test("a client that goes away while it is waited for leaves nothing")
    func abandonsWait() throws {
        let host = try Host()
        _ = try host.add(AddRequest(target: "null", id: 2)).get()
        #expect(try host.delete(2) == nil)
        var tries = 0
        host.kernel.failures[.addDevice] = EEXIST
        host.kernel.beforeAnswer[.addDevice] = { tries += 1 }
        var error: InterfaceError?
        let operation = host.broker.add(AddRequest(target: "null", id: 2), peer: Host.alice) {
            if case .failed(let problem) = $0 { error = problem }
        }
        try host.run { tries == 2 }
        operation?.clientGone()
        try host.run { error != nil }
        #expect(host.leftovers == [])
    }
}

@Suite("What a worker finds wrong")
struct WorkerFailureTests {
    private func error(_ failure: WorkerFailure) throws -> InterfaceError? {
        let host = try Host()
        host.fault = .refusesFile
        host.failure = failure
        var ends: [Int32] = [0, 0]
        #expect(pipe(&ends) == 0)
        defer { for end in ends { close(end) } }
        let request = AddRequest(
            target: "loop", fileName: "my.img", options: [OptionValue("offset", "4096"), OptionValue("size", "8192")])
        let result = try host.add(request) { parking in _ = try? send(parking, [0], files: [ends[0]]) }
        // The child that closes the file takes a moment.
        try host.run { host.leftovers == [] }
        guard case .failure(let error) = result else { return nil }
        return error
    }

    @Test("is told with the name of the file")
    func namesFile() throws {
        for step in [WorkerFailure.Step.fileIsDirectory, .fileIsPathOnly, .fileOnKernelFileSystem, .fileEmpty] {
            let error = try error(WorkerFailure(step))
            #expect(error?.name == "io.ubd.Broker.BadFile")
            #expect(error?.message.hasPrefix("my.img ") == true)
        }
    }

    @Test("is told with the name of the file system, or its number, and the right that would allow it")
    func namesFileSystem() throws {
        for (step, magic, name, right) in [
            (WorkerFailure.Step.fileOnOtherFileSystem, UInt64(0x6573_5546), "(fuse)", "allow-other-fs"),
            (.fileOnOtherFileSystem, 0x794c_7630, "(overlay)", "allow-other-fs"),
            (.fileOnOtherFileSystem, 0x1234_abcd, "(of type 0x1234abcd)", "allow-other-fs"),
            (
                .fileOnOtherFileSystem, 0x1_0000_ef53, "(it says ext4, as 9P may, and offers no evidence)",
                "allow-other-fs"
            ),
            (.fileOnNetwork, 0x6969, "(nfs)", "allow-network-fs"),
        ] {
            let error = try #require(try error(WorkerFailure(step, detail: magic)))
            #expect(error.message.hasPrefix("my.img ") && error.message.hasSuffix(name))
            #expect(error.remedy.contains(right))
        }
    }

    @Test("is told with the value that was asked, and what there is")
    func namesValue() throws {
        #expect(
            try error(WorkerFailure(.offsetBeyondEnd, detail: 1000))?.message
                == "offset 4096 lies beyond the 1000 bytes of my.img")
        #expect(
            try error(WorkerFailure(.sizeBeyondEnd, detail: 1000))?.message
                == "size 8192 is more than the 1000 bytes left in my.img")
    }

    @Test("a ring that may not be made means that io_uring is switched off, and how to switch it on")
    func namesSetting() throws {
        let error = try error(WorkerFailure(.ring, errno: EPERM))
        #expect(error?.name == "io.ubd.Broker.KernelUnsupported")
        #expect(error?.remedy.contains("kernel.io_uring_group=12345") == true)
        #expect(try self.error(WorkerFailure(.ring, errno: ENOMEM))?.name == "io.ubd.Broker.Failed")
    }
}

@Suite("The block device behind a disk")
struct BackingDeviceTests {
    /// A sysfs with one device 8:1 whose folder is a link to `target`, and with slaves that are links too.
    private func sysfs(_ host: Host, _ target: String, slaves: [String: String] = [:]) throws -> BackingDevice {
        let root = host.folder + "/sys"
        let folder = "\(root)/dev/block/\(target)"
        var path = ""
        for part in "\(folder)/slaves".split(separator: "/") {
            path += "/" + part
            mkdir(path, 0o700)
        }
        for (name, below) in slaves { symlink(below, "\(folder)/slaves/\(name)") }
        #expect(symlink(target, "\(root)/dev/block/8:1") == 0)
        return BackingDevice(major: 8, minor: 1, sysfs: root)
    }

    @Test(
        "a ublk disk and its partitions are known by their names in sysfs, on old kernels and new ones",
        arguments: ["virtual/block/ublkb0", "virtual/ublk-char/ublkc0/block/ublkb0", "virtual/block/ublkb12/ublkb12p1"])
    func findsUblk(_ target: String) throws {
        let host = try Host()
        let device = try sysfs(host, target)
        #expect(device.exists && device.liesOnUblk)
        withExtendedLifetime(host) {}
    }

    @Test("so is what lies on one", arguments: ["../../x/ublkb3", "../../x/ublkb3/ublkb3p2"])
    func findsBelow(_ slave: String) throws {
        let host = try Host()
        #expect(try sysfs(host, "virtual/block/dm-0", slaves: ["sda": "../../sda", "below": slave]).liesOnUblk)
        withExtendedLifetime(host) {}
    }

    @Test("so is, to be safe, one of which it can not be told what it lies on")
    func unknownBelow() throws {
        let host = try Host()
        let device = try sysfs(host, "virtual/block/dm-0")
        #expect(!device.liesOnUblk)
        let slaves = host.folder + "/sys/dev/block/virtual/block/dm-0/slaves"
        #expect(rmdir(slaves) == 0)
        try replaceFile(slaves, with: [], mode: 0o600)
        #expect(device.liesOnUblk)
        // Nor can what is no link.
        let link = host.folder + "/sys/dev/block/8:1"
        #expect(unlink(link) == 0 && !device.liesOnUblk)
        try replaceFile(link, with: [], mode: 0o600)
        #expect(device.liesOnUblk)
    }

    @Test("other disks may be there")
    func allowsOthers() throws {
        let host = try Host()
        let device = try sysfs(host, "pci0/nvme0n1/nvme0n1p1", slaves: ["sda": "../../sda"])
        #expect(device.exists && !device.liesOnUblk)
        withExtendedLifetime(host) {}
    }

    @Test("one without a folder is gone")
    func findsGone() throws {
        #expect(!BackingDevice(major: 8, minor: 1, sysfs: try Host().folder).exists)
    }

    @Test("an add on a ublk disk is refused, and leaves nothing")
    func refuses() throws {
        let host = try Host()
        _ = try sysfs(host, "virtual/block/ublkb0")
        host.geometry.backingMajor = 8
        host.geometry.backingMinor = 1
        let error = #expect(throws: InterfaceError.self) { try host.add().get() }
        #expect(error?.message.contains("is a ublk device or lies on one") == true)
        #expect(host.leftovers == [])
    }
}
