"""The official Python clients behind one call: the action's name and its wire parameters.

Each adapter goes through the SDK's own typed requests, so that what is tested is what people use.
A refusal is raised as `Refused` with the wire's code and HTTP status.
"""

import importlib
import json
import re


class Refused(Exception):
    def __init__(self, code, status, message):
        super().__init__(f"{status} {code}: {message}")
        self.code, self.status = code, status


def snake(name):
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Old:
    """aliyun-python-sdk-kms: RPC v1, HMAC-SHA1."""

    name = "old"

    def __init__(self, credentials, secret=None, key_id=None):
        from aliyunsdkcore.client import AcsClient

        self.endpoint = credentials["url"].removeprefix("https://").rstrip("/")
        self.client = AcsClient(
            key_id or credentials["access_key_id"],
            secret or credentials["access_key_secret"],
            "cn-local",
            verify=credentials["ca_file"],
            auto_retry=False,
            timeout=60,
        )

    def call(self, action, **params):
        from aliyunsdkcore.acs_exception.exceptions import ServerException

        module = importlib.import_module(f"aliyunsdkkms.request.v20160120.{action}Request")
        request = getattr(module, f"{action}Request")()
        request.set_endpoint(self.endpoint)
        request.set_protocol_type("https")
        for name, value in params.items():
            if isinstance(value, dict):
                value = json.dumps(value)
            setter = getattr(request, f"set_{name}", None)
            if setter is None:
                # Parameters that are younger than this SDK.
                request.add_query_param(name, value)
            else:
                setter(value)
        try:
            return json.loads(self.client.do_action_with_exception(request))
        except ServerException as error:
            raise Refused(error.get_error_code(), error.get_http_status(), str(error)) from None


class New:
    """alibabacloud_kms20160120: ACS3 by default, RPC v1 (`v2`) or ACS4 (`v4`) when configured."""

    def __init__(self, credentials, secret=None, key_id=None, flavour="acs3"):
        from alibabacloud_kms20160120 import models
        from alibabacloud_kms20160120.client import Client
        from alibabacloud_tea_openapi.models import Config

        self.name = flavour
        self.models = models
        config = Config(
            access_key_id=key_id or credentials["access_key_id"],
            access_key_secret=secret or credentials["access_key_secret"],
            endpoint=credentials["url"].removeprefix("https://").rstrip("/"),
            protocol="https",
            region_id="cn-local",
            ca=credentials["ca_file"],
        )
        if flavour == "v2":
            config.signature_algorithm = "v2"
        if flavour == "v4":
            config.signature_version = "v4"
        self.client = Client(config)

    def call(self, action, **params):
        from alibabacloud_tea_util.models import RuntimeOptions
        from Tea.exceptions import TeaException

        method = getattr(self.client, f"{snake(action)}_with_options")
        runtime = RuntimeOptions(autoretry=False, read_timeout=60_000, connect_timeout=20_000)
        model = getattr(self.models, f"{action}Request", None)
        try:
            if model is None:
                answer = method(runtime)
            else:
                answer = method(model(**{snake(k): v for k, v in params.items()}), runtime)
        except TeaException as error:
            status = getattr(error, "status_code", None) or getattr(error, "statusCode", None)
            raise Refused(error.code, status, error.message) from None
        return answer.body.to_map()


def make(flavour, credentials, **other):
    if flavour == "old":
        return Old(credentials, **other)
    return New(credentials, flavour=flavour, **other)
